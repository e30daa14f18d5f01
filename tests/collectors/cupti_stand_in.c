/* A stand-in for libcupti, for tests alone: the entry points that moescope calls, with CUPTI's binary interface, and a
 * "device" whose work a test tells. Records are laid out by CUPTI's documentation of 12.9, by offset, with nothing of
 * moescope's own headers. What it keeps to: kinds and calls are recorded only while they are on; an external correlation
 * precedes each API record; API records and those of devices lie in different buffers, a device's are handed out first;
 * a default flush keeps a buffer with unfinished work back. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { MEMCPY = 1, MEMSET = 2, DRIVER = 4, RUNTIME = 5, KERNEL = 10, MEMCPY2 = 22, SYNC = 38, EXTERNAL = 39 };
static const size_t sizes[64] = {[MEMCPY] = 88, [MEMSET] = 80, [DRIVER] = 40, [RUNTIME] = 40, [KERNEL] = 208, [MEMCPY2] = 96, [SYNC] = 56, [EXTERNAL] = 24};

typedef void (*request)(uint8_t **, size_t *, size_t *);
typedef void (*complete)(void *, uint32_t, uint8_t *, size_t, size_t);

struct buffer {
    uint8_t *at;
    size_t bytes, used;
    int unfinished;
};

static request ask;
static complete give;
static struct buffer device, api;
static uint8_t on[64], runtime_calls[1024], driver_calls[1024];
static uint32_t next_correlation = 100;
static size_t dropped;
static __thread uint64_t pushed[8][64];
static __thread uint32_t depth[8];
static double ticks_per_ns; /* 0: CLOCK_REALTIME */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int64_t clock_ns(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The clock of records; a processor's counter where ticks_per_ns is set. */
static uint64_t stamp(int64_t monotonic) {
    if (ticks_per_ns != 0) return (uint64_t)((double)monotonic * ticks_per_ns) + 77777;
    static int64_t offset; /* read once: durations are exact */
    if (!offset) offset = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC);
    return (uint64_t)(monotonic + offset);
}

EXPORT int cuptiGetTimestamp(uint64_t *t) {
    *t = stamp(clock_ns(CLOCK_MONOTONIC)); /* one offset for all times: two clocks are never read at once */
    return 0;
}
EXPORT int cuptiGetVersion(uint32_t *version) {
    *version = 28;
    return 0;
}
EXPORT int cuptiGetResultString(int result, const char **text) {
    *text = result == 39 ? "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED" : "CUPTI_ERROR_UNKNOWN";
    return 0;
}
EXPORT int cuptiActivityRegisterCallbacks(request r, complete c) {
    if (getenv("STAND_IN_REFUSES")) return 39;
    ask = r;
    give = c;
    return 0;
}
EXPORT int cuptiActivityEnable(uint32_t kind) {
    on[kind] = 1;
    return 0;
}
EXPORT int cuptiActivityDisable(uint32_t kind) {
    on[kind] = 0;
    return 0;
}
#ifndef OLD /* 12.6 and later */
EXPORT int cuptiActivityEnableRuntimeApi(uint32_t call, uint8_t enable) {
    if (call >= 480) return 1; /* a version that does not know the newest calls */
    runtime_calls[call] = enable;
    return 0;
}
EXPORT int cuptiActivityEnableDriverApi(uint32_t call, uint8_t enable) {
    if (call >= 780) return 1;
    driver_calls[call] = enable;
    return 0;
}
#endif
EXPORT int cuptiActivityPushExternalCorrelationId(uint32_t kind, uint64_t id) {
    pushed[kind][depth[kind]++ % 64] = id;
    return 0;
}
EXPORT int cuptiActivityPopExternalCorrelationId(uint32_t kind, uint64_t *last) {
    if (!depth[kind]) return 18;
    *last = pushed[kind][--depth[kind] % 64];
    return 0;
}
EXPORT int cuptiActivityGetNumDroppedRecords(void *context, uint32_t stream, size_t *count) {
    (void)context, (void)stream;
    *count = dropped;
    dropped = 0;
    return 0;
}
EXPORT int cuptiActivityGetNextRecord(uint8_t *buffer, size_t valid, uint8_t **record) {
    uint8_t *next = buffer;
    if (*record) {
        uint32_t kind;
        memcpy(&kind, *record, 4);
        next = *record + sizes[kind];
    }
    if (next >= buffer + valid) return 12;
    *record = next;
    return 0;
}

static void hand_out(struct buffer *b) {
    if (!b->at || !b->used) return;
    struct buffer full = *b;
    *b = (struct buffer){0};
    give((void *)1, 0, full.at, full.bytes, full.used);
}

EXPORT int cuptiActivityFlushAll(uint32_t flag) {
    pthread_mutex_lock(&lock);
    if (flag & 1 || !device.unfinished) hand_out(&device);
    hand_out(&api);
    pthread_mutex_unlock(&lock);
    return 0;
}

static uint8_t *room(struct buffer *b, uint32_t kind) {
    if (b->at && b->used + sizes[kind] > b->bytes) hand_out(b);
    if (!b->at) {
        size_t most;
        ask(&b->at, &b->bytes, &most);
        if (!b->at || b->bytes < sizes[kind]) return NULL;
    }
    uint8_t *record = b->at + b->used;
    b->used += sizes[kind];
    memset(record, 0, sizes[kind]);
    memcpy(record, &kind, 4);
    return record;
}

static void put8(uint8_t *r, size_t at, uint8_t v) { r[at] = v; }
static void put2(uint8_t *r, size_t at, uint16_t v) { memcpy(r + at, &v, 2); }
static void put4(uint8_t *r, size_t at, uint32_t v) { memcpy(r + at, &v, 4); }
static void put8b(uint8_t *r, size_t at, uint64_t v) { memcpy(r + at, &v, 8); }

static void times(uint8_t *r, size_t at, int64_t start, int64_t end) {
    put8b(r, at, start ? stamp(start) : 0);
    put8b(r, at + 8, end ? stamp(end) : 0);
    device.unfinished |= !end;
}

/* A call of the runtime or driver: its number, as what it makes the device do bears it. 0 where it is not recorded. */
EXPORT uint32_t stand_in_call(uint32_t kind, uint32_t call) {
    pthread_mutex_lock(&lock);
    uint32_t correlation = next_correlation++;
    if (on[kind] || (kind == RUNTIME ? runtime_calls : driver_calls)[call]) {
        for (uint32_t external = 0; on[EXTERNAL] && external < 8; external++)
            if (depth[external]) {
                uint8_t *r = room(&api, EXTERNAL);
                put4(r, 4, external);
                put8b(r, 8, pushed[external][(depth[external] - 1) % 64]);
                put4(r, 16, correlation);
            }
        uint8_t *r = room(&api, kind);
        put4(r, 4, call);
        put8b(r, 8, stamp(clock_ns(CLOCK_MONOTONIC)));
        put8b(r, 16, stamp(clock_ns(CLOCK_MONOTONIC)));
        put4(r, 24, (uint32_t)getpid());
        put4(r, 28, (uint32_t)syscall(SYS_gettid));
        put4(r, 32, correlation);
    }
    pthread_mutex_unlock(&lock);
    return correlation;
}

/* What the device does; times on CLOCK_MONOTONIC, 0 for one that is not known. */
EXPORT void stand_in_kernel(const char *name, uint32_t correlation, uint32_t ordinal, uint32_t stream, int64_t start, int64_t end, uint64_t node) {
    pthread_mutex_lock(&lock);
    uint8_t *r = on[KERNEL] ? room(&device, KERNEL) : NULL;
    if (r) {
        put2(r, 6, 168);
        times(r, 16, start, end);
        put4(r, 40, ordinal), put4(r, 44, 1 + ordinal), put4(r, 48, stream);
        put4(r, 52, 132), put4(r, 56, 2), put4(r, 60, 1);
        put4(r, 64, 384), put4(r, 68, 1), put4(r, 72, 1);
        put4(r, 76, 1024), put4(r, 80, 200000);
        put4(r, 92, correlation);
        put8b(r, 104, (uint64_t)(uintptr_t)name);
        put8b(r, 144, node);
    }
    pthread_mutex_unlock(&lock);
}

EXPORT void stand_in_copy(uint32_t copy_kind, uint32_t correlation, uint32_t ordinal, uint32_t stream, int64_t start, int64_t end, uint64_t bytes) {
    uint32_t kind = copy_kind == 10 ? MEMCPY2 : MEMCPY;
    pthread_mutex_lock(&lock);
    uint8_t *r = on[kind] ? room(&device, kind) : NULL;
    if (r) {
        put8(r, 4, (uint8_t)copy_kind);
        put8b(r, 8, bytes);
        times(r, 16, start, end);
        put4(r, 32, ordinal), put4(r, 36, 1 + ordinal), put4(r, 40, stream);
        put4(r, kind == MEMCPY ? 44 : 60, correlation);
    }
    pthread_mutex_unlock(&lock);
}

EXPORT void stand_in_set(uint32_t correlation, uint32_t ordinal, uint32_t stream, int64_t start, int64_t end, uint64_t bytes) {
    pthread_mutex_lock(&lock);
    uint8_t *r = on[MEMSET] ? room(&device, MEMSET) : NULL;
    if (r) {
        put8b(r, 8, bytes);
        times(r, 16, start, end);
        put4(r, 32, ordinal), put4(r, 36, 1 + ordinal), put4(r, 40, stream), put4(r, 44, correlation);
    }
    pthread_mutex_unlock(&lock);
}

EXPORT void stand_in_wait(uint32_t type, uint32_t correlation, uint32_t context, uint32_t stream, int64_t start, int64_t end) {
    pthread_mutex_lock(&lock);
    uint8_t *r = on[SYNC] ? room(&device, SYNC) : NULL;
    if (r) {
        put4(r, 4, type);
        times(r, 8, start, end);
        put4(r, 24, correlation), put4(r, 28, context), put4(r, 32, stream);
    }
    pthread_mutex_unlock(&lock);
}

EXPORT void stand_in_drop(size_t count) { dropped += count; }
EXPORT void stand_in_counter(double rate) { ticks_per_ns = rate; }
EXPORT int stand_in_is_on(uint32_t kind) { return on[kind]; }

/* Another profiler in the process: it takes the callbacks, and gets what there is from then on. */
static uint32_t taken;
static void other_ask(uint8_t **buffer, size_t *bytes, size_t *most) {
    *buffer = malloc(65536);
    *bytes = 65536;
    *most = 0;
}
static void other_give(void *context, uint32_t stream, uint8_t *buffer, size_t bytes, size_t used) {
    (void)context, (void)stream, (void)bytes;
    taken += used > 0;
    free(buffer);
}
EXPORT void stand_in_other_profiler(int begins) {
    if (begins) {
        cuptiActivityRegisterCallbacks(other_ask, other_give);
        cuptiActivityEnable(KERNEL);
    } else {
        cuptiActivityFlushAll(1);
        cuptiActivityDisable(KERNEL);
    }
}
EXPORT uint32_t stand_in_taken(void) { return taken; }
