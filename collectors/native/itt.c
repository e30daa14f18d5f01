/* PyTorch's ITT collector: the static part of ITT inside torch loads this library through INTEL_LIBITTNOTIFY64 and
 * calls __itt_api_init, which fills in the few functions that torch's observer uses. The structures are the published
 * interface of ITT (ittnotify_config.h, version 3), declared again for the fields read here. */
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "ring.h"

struct itt_api {
    const char *name;
    void **function;
    void *initial;
    void *null;
    int group;
};

struct itt_global {
    unsigned char magic[8];
    unsigned long version[3];
    volatile long initialized[3];
    pthread_mutex_t mutex;
    void *library;
    void *error_handler;
    const char **library_path;
    struct itt_api *api;
};

struct itt_domain {
    volatile int flags;
    const char *name;
    void *wide;
    int extra1;
    void *extra2;
    struct itt_domain *next;
};

struct itt_id {
    unsigned long long d1, d2, d3;
};

static struct itt_domain the_domain = {.flags = 1, .name = "moescope"};

/* A handle is all that torch keeps of a name, and gives back at once; NULL before a ring is open. */
static void *string_handle_create(const char *name) { return moescope_intern(name); }

static struct itt_domain *domain_create(const char *name) {
    (void)name;
    return &the_domain;
}

static void task_begin(const struct itt_domain *domain, struct itt_id id, struct itt_id parent, void *name) {
    (void)domain, (void)id, (void)parent;
    struct name_entry *entry = name;
    /* Before its first call ITT makes handles of its own: a structure whose first field is the text. */
    if (entry && !moescope_is_entry(entry)) entry = moescope_intern(*(const char **)name);
    moescope_range_begin(entry);
}

static void task_end(const struct itt_domain *domain) {
    (void)domain;
    moescope_range_end();
}

MOESCOPE_API void __itt_api_init(struct itt_global *global, int groups) {
    (void)groups;
    if (!global || !global->api) return;
    for (struct itt_api *api = global->api; api->name; api++) {
        if (!strcmp(api->name, "__itt_string_handle_create"))
            *api->function = (void *)string_handle_create;
        else if (!strcmp(api->name, "__itt_domain_create"))
            *api->function = (void *)domain_create;
        else if (!strcmp(api->name, "__itt_task_begin"))
            *api->function = (void *)task_begin;
        else if (!strcmp(api->name, "__itt_task_end"))
            *api->function = (void *)task_end;
        else
            *api->function = api->null;
    }
}
