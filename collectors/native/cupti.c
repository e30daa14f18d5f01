/* Records what NVIDIA GPUs do, from CUPTI's activity API: found with dlopen at run time, so that nothing is linked.
 *
 * It begins where CUDA does: the driver loads what CUDA_INJECTION64_PATH names (injection.c), and that calls
 * moescope_device_injected; or the agent calls moescope_device_begin once it sees CUDA in use. While it is on, phases of each thread are pushed to CUPTI as external
 * correlations, and a thread of our own has what is complete handed out four times a second. CUPTI has one pair of buffer
 * callbacks a process: PyTorch's profiler and this displace each other, so the agent switches this off first.
 * Everything fails open: what does not work is told by moescope_device_problem. Not yet run on a GPU. */
#define _GNU_SOURCE
#include "cupti.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cupti_abi.h"
#include "device.h"
#include "ring.h"

#define BUFFER_BYTES (512u << 10)
#define SPARE_BUFFERS 8u
#define ROUND_NS 250000000L

typedef void (*request_callback)(uint8_t **, size_t *, size_t *);
typedef void (*complete_callback)(void *, uint32_t, uint8_t *, size_t, size_t);

static struct {
    void *library;
    int (*register_callbacks)(request_callback, complete_callback);
    int (*enable)(uint32_t kind);
    int (*disable)(uint32_t kind);
    int (*flush_all)(uint32_t flag);
    int (*next_record)(uint8_t *, size_t, void **);
    int (*dropped_records)(void *context, uint32_t stream, size_t *dropped);
    int (*timestamp)(uint64_t *);
    int (*push)(uint32_t kind, uint64_t id);
    int (*pop)(uint32_t kind, uint64_t *id);
    /* Not in every version: */
    int (*enable_runtime_call)(uint32_t call, uint8_t on);
    int (*enable_driver_call)(uint32_t call, uint8_t on);
    int (*version)(uint32_t *);
    int (*result_text)(int result, const char **text);
} cupti;

/* Order of locks: on_off, then decoding. CUPTI calls back while on_off is held. */
static pthread_mutex_t on_off = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t decoding = PTHREAD_MUTEX_INITIALIZER;
static int64_t since_ns; /* 0: off */
static int allowed, automatic, thread_started, whole_apis, inherited;
static char candidates[4096];
static char problem[256];
static char found_at[1024];
static uint8_t *spare[SPARE_BUFFERS];
static uint32_t spare_count;

static const uint32_t kinds[] = {CUPTI_MEMCPY, CUPTI_MEMCPY2, CUPTI_MEMSET, CUPTI_SYNCHRONIZATION, CUPTI_EXTERNAL_CORRELATION,
                                 CUPTI_CONCURRENT_KERNEL};
#define KINDS (sizeof kinds / sizeof kinds[0])

static void requested(uint8_t **buffer, size_t *bytes, size_t *most_records) {
    pthread_mutex_lock(&decoding);
    uint8_t *found = spare_count ? spare[--spare_count] : NULL;
    pthread_mutex_unlock(&decoding);
    if (!found) found = aligned_alloc(8, BUFFER_BYTES);
    *buffer = found;
    *bytes = found ? BUFFER_BYTES : 0;
    *most_records = 0;
}

static void completed(void *context, uint32_t stream, uint8_t *buffer, size_t bytes, size_t valid) {
    (void)bytes;
    if (!buffer) return;
    int64_t begun_ns = moescope_now_ns();
    pthread_mutex_lock(&decoding);
    if (cupti_clock_readings() < 2) cupti_clock_read(cupti.timestamp);
    if (valid) device_buffer(cupti.next_record, buffer, valid, cupti_clock_monotonic);
    size_t dropped = 0;
    if (!cupti.dropped_records(context, stream, &dropped) && dropped) device_lost(dropped);
    if (spare_count < SPARE_BUFFERS) {
        spare[spare_count++] = buffer;
        buffer = NULL;
    }
    pthread_mutex_unlock(&decoding);
    free(buffer);
    moescope_add_overhead((uint64_t)(moescope_now_ns() - begun_ns));
}

static void push_phase(uint64_t id) { cupti.push(CUPTI_EXTERNAL_CUSTOM2, id); }

static void pop_phase(void) {
    uint64_t id;
    cupti.pop(CUPTI_EXTERNAL_CUSTOM2, &id);
}

static int fail(const char *what, int result) {
    const char *text = NULL;
    if (result > 0 && cupti.result_text) cupti.result_text(result, &text);
    if (result > 0)
        snprintf(problem, sizeof problem, "%s: %s (%d)", what, text ? text : "CUPTI error", result);
    else
        snprintf(problem, sizeof problem, "%s", what);
    return result ? result : -1;
}

static int symbol(void *function, const char *name) {
    void *found = dlsym(cupti.library, name);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

/* The one that is loaded already, as PyTorch brings its own and two in a process do not go together; else the first of
 * the candidates that can be loaded. */
static int load(void) {
    static const char *const sonames[] = {"libcupti.so.13", "libcupti.so.12"};
    if (cupti.library) return 0;
    const char *forced = getenv("MOESCOPE_CUPTI");
    if (forced && *forced) {
        cupti.library = dlopen(forced, RTLD_NOW | RTLD_LOCAL);
        snprintf(found_at, sizeof found_at, "%s", forced);
        if (!cupti.library) return fail("the library that MOESCOPE_CUPTI names cannot be loaded", 0);
    }
    for (size_t i = 0; !cupti.library && i < sizeof sonames / sizeof sonames[0]; i++) {
        cupti.library = dlopen(sonames[i], RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
        snprintf(found_at, sizeof found_at, "%s", sonames[i]);
    }
    char list[sizeof candidates];
    snprintf(list, sizeof list, "%s", candidates);
    for (char *rest = list, *path; !cupti.library && (path = strsep(&rest, "\n"));) {
        if (!*path) continue;
        cupti.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        snprintf(found_at, sizeof found_at, "%s", path);
    }
    if (!cupti.library) {
        found_at[0] = 0;
        return fail("no libcupti.so.12 or .13 beside torch, on the library path or in the CUDA toolkit", 0);
    }
    int all = symbol(&cupti.register_callbacks, "cuptiActivityRegisterCallbacks") & symbol(&cupti.enable, "cuptiActivityEnable") &
              symbol(&cupti.disable, "cuptiActivityDisable") & symbol(&cupti.flush_all, "cuptiActivityFlushAll") &
              symbol(&cupti.next_record, "cuptiActivityGetNextRecord") &
              symbol(&cupti.dropped_records, "cuptiActivityGetNumDroppedRecords") & symbol(&cupti.timestamp, "cuptiGetTimestamp") &
              symbol(&cupti.push, "cuptiActivityPushExternalCorrelationId") & symbol(&cupti.pop, "cuptiActivityPopExternalCorrelationId");
    symbol(&cupti.enable_runtime_call, "cuptiActivityEnableRuntimeApi");
    symbol(&cupti.enable_driver_call, "cuptiActivityEnableDriverApi");
    symbol(&cupti.version, "cuptiGetVersion");
    symbol(&cupti.result_text, "cuptiGetResultString");
    if (all) return 0;
    dlclose(cupti.library);
    memset(&cupti, 0, sizeof cupti);
    return fail("this libcupti lacks functions of CUDA 12's", 0);
}

/* A call that this version does not know is no harm: its launches then have no phase. */
static void record_calls(int on) {
    whole_apis = !cupti.enable_runtime_call || !cupti.enable_driver_call;
    if (whole_apis) {
        int (*change)(uint32_t) = on ? cupti.enable : cupti.disable;
        change(CUPTI_RUNTIME);
        change(CUPTI_DRIVER);
        return;
    }
    for (size_t i = 0; i < sizeof cupti_runtime_calls / sizeof cupti_runtime_calls[0]; i++)
        cupti.enable_runtime_call(cupti_runtime_calls[i], (uint8_t)on);
    for (size_t i = 0; i < sizeof cupti_driver_calls / sizeof cupti_driver_calls[0]; i++)
        cupti.enable_driver_call(cupti_driver_calls[i], (uint8_t)on);
}

static void *rounds(void *unused) {
    (void)unused;
    pthread_setname_np(pthread_self(), "moescope-device");
    for (;;) {
        nanosleep(&(struct timespec){.tv_nsec = ROUND_NS}, NULL);
        pthread_mutex_lock(&on_off);
        if (since_ns) {
            pthread_mutex_lock(&decoding);
            cupti_clock_read(cupti.timestamp);
            pthread_mutex_unlock(&decoding);
            cupti.flush_all(0);
            pthread_mutex_lock(&decoding);
            device_write(0);
            pthread_mutex_unlock(&decoding);
        }
        pthread_mutex_unlock(&on_off);
    }
    return NULL;
}

static void in_child(void) {
    /* CUDA does not work in a child of a process that uses it; one that did not use it yet may begin anew. */
    inherited = since_ns != 0 || inherited;
    since_ns = 0;
    thread_started = 0;
    spare_count = 0; /* CUPTI may hold them: lost, and few */
    pthread_mutex_init(&on_off, NULL);
    pthread_mutex_init(&decoding, NULL);
    device_forget();
    cupti_clock_reset();
}

static void setup(void) { pthread_atfork(NULL, NULL, in_child); }

static const struct phase_listener listener = {push_phase, pop_phase};

static int begin(void) {
    if (since_ns) return 0;
    if (inherited) return fail("CUDA was in use before this process was forked", 0);
    if (!moescope_is_open()) return fail("no ring is open", 0);
    int result = load();
    if (result) return result;
    if ((result = cupti.register_callbacks(requested, completed))) return fail("cuptiActivityRegisterCallbacks", result);
    pthread_mutex_lock(&decoding);
    cupti_clock_reset();
    cupti_clock_read(cupti.timestamp);
    pthread_mutex_unlock(&decoding);
    size_t done = 0;
    while (done < KINDS && !(result = cupti.enable(kinds[done]))) done++;
    if (result) {
        fail("cuptiActivityEnable", result);
        while (done--) cupti.disable(kinds[done]);
        return result;
    }
    record_calls(1);
    moescope_listen(&listener);
    problem[0] = 0;
    since_ns = moescope_now_ns();
    pthread_t thread;
    if (!thread_started && !pthread_create(&thread, NULL, rounds, NULL)) {
        pthread_detach(thread);
        thread_started = 1;
    }
    return 0;
}

/* Says that kernels are wanted. paths: libraries to try, a line each; at_once: as soon as CUDA starts */
MOESCOPE_API void moescope_device_allow(const char *paths, int at_once) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, setup);
    pthread_mutex_lock(&on_off);
    snprintf(candidates, sizeof candidates, "%s", paths);
    allowed = 1;
    automatic = at_once;
    pthread_mutex_unlock(&on_off);
}

/* Begins, where it is allowed and not on yet. 0, or what moescope_device_problem tells. */
MOESCOPE_API int moescope_device_begin(void) {
    pthread_mutex_lock(&on_off);
    int result = allowed ? begin() : fail("nobody has asked for kernels", 0);
    pthread_mutex_unlock(&on_off);
    return result;
}

/* CUDA starts in this process. */
MOESCOPE_API void moescope_device_injected(void) {
    pthread_mutex_lock(&on_off);
    if (allowed && automatic) begin();
    pthread_mutex_unlock(&on_off);
}

/* Ends, with everything that was recorded written; unfinished work is counted, not recorded. */
MOESCOPE_API void moescope_device_end(void) {
    pthread_mutex_lock(&on_off);
    if (since_ns) {
        moescope_listen(NULL);
        record_calls(0);
        for (size_t i = KINDS; i-- > 0;) cupti.disable(kinds[i]);
        pthread_mutex_lock(&decoding);
        cupti_clock_read(cupti.timestamp);
        pthread_mutex_unlock(&decoding);
        cupti.flush_all(CUPTI_FLUSH_FORCED);
        pthread_mutex_lock(&decoding);
        device_write(1);
        pthread_mutex_unlock(&decoding);
        since_ns = 0;
    }
    pthread_mutex_unlock(&on_off);
}

/* Why it did not begin; empty where it did, or nobody tried. */
MOESCOPE_API const char *moescope_device_problem(void) { return problem; }

/* The libcupti in use. */
MOESCOPE_API const char *moescope_device_library(void) { return found_at; }

MOESCOPE_API void moescope_device_facts(struct cupti_facts *facts) {
    pthread_mutex_lock(&decoding);
    struct device_counts counts = device_counts();
    *facts = (struct cupti_facts){.since_ns = since_ns, .clock_error_ns = cupti_clock_error_ns(), .clock_readings = cupti_clock_readings(),
                                  .records = counts.records, .lost = counts.lost, .untimed = counts.untimed, .unjoined = counts.unjoined, .devices = counts.devices,
                                  .whole_apis = (uint32_t)whole_apis};
    pthread_mutex_unlock(&decoding);
    if (cupti.version) cupti.version(&facts->version);
}
