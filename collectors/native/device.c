/* Decodes CUPTI's buffers into the ring: names, phases and graph nodes are looked up here, so that a record stands alone.
 *
 * A launch is known by its API record, which the external correlation (the innermost phase of the launching thread, or the
 * collective that it is issuing) precedes. Buffers of one thread or context come whole, those of others later: what a
 * device did waits for its launch in a list of its own, up to two rounds of `device_write`. All under the caller's lock.
 * Not yet run on a GPU. */
#define _GNU_SOURCE
#include "device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cupti_abi.h"
#include "ring.h"

#define LAUNCHES 65536u /* the last ones: numbers of launches rise */
#define WAITING 8192u
#define NAMES 4096u
#define CONTEXTS 64u
#define AT_ONCE 160u /* records in a blob: 16 KB of a chunk's 64 */

struct launch {
    uint32_t correlation;
    uint32_t known;
    uint64_t phase, call;
};

struct waiting {
    struct device_record record;
    uint32_t round;
};

struct name {
    const char *at;
    char *text;
    uint32_t id;
};

static struct launch launches[LAUNCHES];
static struct waiting waiting[WAITING];
static uint32_t waiting_count, current_round;
static struct name names[NAMES];
static uint32_t context_device[CONTEXTS]; /* plus one; 0: not known */
static struct device_record batch[AT_ONCE];
static uint32_t batch_count;
static struct device_counts counts;

struct device_counts device_counts(void) { return counts; }

/* In a child that shares nothing of this with its parent. */
void device_forget(void) {
    memset(launches, 0, sizeof launches);
    memset(names, 0, sizeof names);
    memset(context_device, 0, sizeof context_device);
    memset(&counts, 0, sizeof counts);
    waiting_count = batch_count = current_round = 0;
}

void device_lost(uint64_t records) {
    counts.lost += records;
    moescope_add_dropped(records);
}

static void send(void) {
    if (!batch_count) return;
    if (moescope_blob(DEVICE_KIND, batch, (uint32_t)(batch_count * sizeof batch[0]))) {
        counts.lost += batch_count;
        moescope_add_dropped(batch_count - 1); /* the blob itself is counted by the ring */
    } else {
        counts.records += batch_count;
    }
    batch_count = 0;
}

static void put(const struct device_record *record) {
    counts.unjoined += !record->joined;
    if (record->device < 64) counts.devices |= 1ull << record->device;
    batch[batch_count++] = *record;
    if (batch_count == AT_ONCE) send();
}

static int join(struct device_record *record) {
    const struct launch *launch = &launches[record->correlation % LAUNCHES];
    if (!launch->known || launch->correlation != record->correlation) return 0;
    record->phase = launch->phase;
    record->call = launch->call;
    record->joined = 1;
    return 1;
}

/* external: whether `id` tells a phase, or a collective, around the launch */
static void launched(uint32_t correlation, uint64_t id, int external) {
    struct launch *launch = &launches[correlation % LAUNCHES];
    /* The API record itself tells no phase: the external correlation before it has. */
    if (!external && launch->known && launch->correlation == correlation) return;
    uint64_t call = id & CALL_MARK ? id & ~CALL_MARK : 0;
    *launch = (struct launch){.correlation = correlation, .known = 1, .phase = call ? moescope_call_phase(call) : id, .call = call};
}

/* Writes what waits and has its launch now; what has waited two rounds, or everything where `all`, as it is. */
void device_write(int all) {
    uint32_t kept = 0;
    current_round++;
    for (uint32_t i = 0; i < waiting_count; i++) {
        if (join(&waiting[i].record) || all || current_round - waiting[i].round > 2)
            put(&waiting[i].record);
        else
            waiting[kept++] = waiting[i];
    }
    waiting_count = kept;
    send();
}

static void add(struct device_record *record) {
    if (join(record)) {
        put(record);
        return;
    }
    if (waiting_count == WAITING) device_write(1);
    waiting[waiting_count++] = (struct waiting){.record = *record, .round = current_round};
}

typedef char *(*demangler)(const char *, char *, size_t *, int *);

static demangler find_demangler(void) {
    static demangler found;
    static int asked;
    if (!asked) {
        asked = 1;
        void *symbol = dlsym(RTLD_DEFAULT, "__cxa_demangle");
        void *library = symbol ? NULL : dlopen("libstdc++.so.6", RTLD_NOW | RTLD_LOCAL);
        if (library) symbol = dlsym(library, "__cxa_demangle");
        memcpy(&found, &symbol, sizeof found);
    }
    return found;
}

/* The name as people read it, cut to what the ring's table holds: what names share in front is told apart by a hash. */
static uint32_t read_name(const char *mangled) {
    demangler demangle = !strncmp(mangled, "_Z", 2) ? find_demangler() : NULL;
    int status = 1;
    char *readable = demangle ? demangle(mangled, NULL, NULL, &status) : NULL;
    const char *text = status == 0 && readable ? readable : mangled;
    uint32_t id;
    if (strlen(text) > NAME_MAX_BYTES) {
        uint32_t hash = 2166136261u;
        for (const char *p = text; *p; p++) hash = (hash ^ (unsigned char)*p) * 16777619u;
        char cut[NAME_MAX_BYTES + 1];
        snprintf(cut, sizeof cut, "%.*s #%08x", (int)NAME_MAX_BYTES - 10, text, (unsigned)hash);
        id = moescope_name(cut);
    } else {
        id = moescope_name(text);
    }
    free(readable);
    return id;
}

/* Names are told apart by where they lie, and compared, as a module that was unloaded leaves its place to another. */
static uint32_t name_of(const char *mangled) {
    if (!mangled) return 0;
    struct name *slot = &names[((uintptr_t)mangled * 11400714819323198485ull) >> 52];
    if (slot->at == mangled && slot->text && !strcmp(slot->text, mangled)) return slot->id;
    free(slot->text);
    *slot = (struct name){.at = mangled, .text = strdup(mangled), .id = read_name(mangled)};
    return slot->id;
}

static const char *copy_name(uint8_t kind) {
    static const char *const known[] = {"Memcpy",      "Memcpy HtoD", "Memcpy DtoH", "Memcpy HtoA", "Memcpy AtoH", "Memcpy AtoA",
                                        "Memcpy AtoD", "Memcpy DtoA", "Memcpy DtoD", "Memcpy HtoH", "Memcpy PtoP"};
    return known[kind < sizeof known / sizeof known[0] ? kind : 0];
}

static const char *sync_name(uint32_t type) {
    static const char *const known[] = {"Synchronize", "Event Synchronize", "Stream Wait Event", "Stream Synchronize", "Context Synchronize"};
    return known[type < sizeof known / sizeof known[0] ? type : 0];
}

static int timed(struct device_record *record, uint64_t start, uint64_t end, int64_t (*clock)(uint64_t)) {
    if (!start || !end || end < start) {
        counts.untimed++;
        return 0;
    }
    record->start_ns = clock(start);
    record->dur_ns = clock(end) - record->start_ns;
    return 1;
}

static void kernel(const struct cupti_kernel *k, int64_t (*clock)(uint64_t)) {
    struct device_record record = {.work = DEVICE_KERNEL, .graph_node = k->graph_node, .name = name_of(k->name), .correlation = k->correlation,
                                   .device = k->device, .context = k->context, .stream = k->stream, .registers = k->registers,
                                   .shared_bytes = (uint32_t)k->static_shared + (uint32_t)k->dynamic_shared};
    for (int i = 0; i < 3; i++) record.grid[i] = (uint32_t)k->grid[i], record.block[i] = (uint32_t)k->block[i];
    context_device[k->context % CONTEXTS] = k->device + 1;
    if (timed(&record, k->start, k->end, clock)) add(&record);
}

static void copy(const struct cupti_memcpy *c, int64_t (*clock)(uint64_t)) {
    struct device_record record = {.work = DEVICE_COPY, .graph_node = c->graph_node, .name = moescope_name(copy_name(c->copy_kind)),
                                   .correlation = c->correlation, .device = c->device, .context = c->context, .stream = c->stream,
                                   .bytes = c->bytes, .copy_kind = c->copy_kind};
    if (timed(&record, c->start, c->end, clock)) add(&record);
}

static void copy_between(const struct cupti_memcpy2 *c, int64_t (*clock)(uint64_t)) {
    struct device_record record = {.work = DEVICE_COPY, .graph_node = c->graph_node, .name = moescope_name(copy_name(c->copy_kind)),
                                   .correlation = c->correlation, .device = c->device, .context = c->context, .stream = c->stream,
                                   .bytes = c->bytes, .copy_kind = c->copy_kind};
    if (timed(&record, c->start, c->end, clock)) add(&record);
}

static void set(const struct cupti_memset *s, int64_t (*clock)(uint64_t)) {
    struct device_record record = {.work = DEVICE_SET, .graph_node = s->graph_node, .name = moescope_name("Memset (Device)"),
                                   .correlation = s->correlation, .device = s->device, .context = s->context, .stream = s->stream,
                                   .bytes = s->bytes};
    if (timed(&record, s->start, s->end, clock)) add(&record);
}

static void synchronization(const struct cupti_synchronization *s, int64_t (*clock)(uint64_t)) {
    struct device_record record = {.work = DEVICE_SYNC, .name = moescope_name(sync_name(s->type)), .correlation = s->correlation,
                                   .device = context_device[s->context % CONTEXTS] - 1, .context = s->context, .stream = s->stream};
    if (timed(&record, s->start, s->end, clock)) add(&record);
}

/* One buffer of CUPTI's. next: cuptiActivityGetNextRecord; clock: CUPTI's time to CLOCK_MONOTONIC */
void device_buffer(int (*next)(uint8_t *, size_t, void **), uint8_t *buffer, size_t valid, int64_t (*clock)(uint64_t)) {
    void *at = NULL;
    while (next(buffer, valid, &at) == CUPTI_OK && at) {
        switch (((const struct cupti_record *)at)->kind) {
        case CUPTI_CONCURRENT_KERNEL:
            kernel(at, clock);
            break;
        case CUPTI_MEMCPY:
            copy(at, clock);
            break;
        case CUPTI_MEMCPY2:
            copy_between(at, clock);
            break;
        case CUPTI_MEMSET:
            set(at, clock);
            break;
        case CUPTI_SYNCHRONIZATION:
            synchronization(at, clock);
            break;
        case CUPTI_EXTERNAL_CORRELATION: {
            const struct cupti_external *e = at;
            if (e->external_kind == CUPTI_EXTERNAL_CUSTOM2) launched(e->correlation, e->external_id, 1);
            break;
        }
        case CUPTI_RUNTIME:
        case CUPTI_DRIVER:
            launched(((const struct cupti_api *)at)->correlation, 0, 0);
            break;
        default:
            counts.unknown++;
        }
    }
    send();
}
