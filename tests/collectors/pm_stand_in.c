/* TEST ONLY: libcuda.so.1 and libcupti.so.12 as far as PM sampling goes, with the parameters' layouts of CUPTI's headers,
 * for two GPUs that do not exist. What each metric tells stands here and again, as literals, in test_pm_sampling.py.
 *
 * PM_STAND_IN names the case: "" (default), "denied" (no permission), "overflow" (the hardware buffer is full at the third
 * reading, once), "flag" (the same, told by a flag, with samples), "late" (it is full at the end), "crash" (the fourth
 * reading ends the process), "stuck" (it never ends), "held" (another profiler has the counters), "small" (a pass holds two
 * metrics), "none" (no GPU), "talks" (the library prints), "slow" (the driver takes a minute to start).
 * The GPUs' clock is CLOCK_MONOTONIC and a million seconds. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 8, BUSY = 26, DENIED = 35, NO_DEVICE = 100 };
enum { GPUS = 2, AHEAD_S = 1000000 };
#define UP_TO(type, last) (offsetof(type, last) + sizeof(((type *)0)->last))
#define TAKE(type, last) if (p->size != UP_TO(type, last)) return INVALID

typedef struct { size_t size; void *priv; } Plain;
typedef struct { size_t size; void *priv; size_t device; const char *chip; } ChipName;
typedef struct { size_t size; void *priv; size_t device, bytes; uint8_t *image; } Availability;
typedef struct { size_t size; void *priv; int type; const char *chip; const uint8_t *image; struct host *host; } HostInit;
typedef struct { size_t size; void *priv; struct host *host; } OfHost;
typedef struct { size_t size; void *priv; struct host *host; const char **names; size_t count; } AddMetrics;
typedef struct { size_t size; void *priv; struct host *host; size_t bytes; } ConfigSize;
typedef struct { size_t size; void *priv; struct host *host; size_t bytes; uint8_t *config; } Config;
typedef struct { size_t size; void *priv; size_t bytes; uint8_t *config; size_t passes; } Passes;
typedef struct {
    size_t size; void *priv; struct host *host;
    const uint8_t *image; size_t bytes, range; const char **names; size_t count; double *values;
} Evaluate;
typedef struct { size_t size; void *priv; size_t device; struct sampling *object; } EnableParams;
typedef struct { size_t size; void *priv; struct sampling *object; } OnObject;
typedef struct {
    size_t size; void *priv; struct sampling *object;
    size_t bytes; const uint8_t *config; size_t buffer; uint64_t interval; int trigger, append;
} SetConfigParams;
typedef struct {
    size_t size; void *priv; struct sampling *object; const char **names; size_t count; uint32_t most; size_t bytes;
} DataSize;
typedef struct { size_t size; void *priv; struct sampling *object; size_t bytes; uint8_t *image; } ImageInit;
typedef struct {
    size_t size; void *priv; struct sampling *object; uint8_t *image; size_t bytes; int reason; uint8_t overflow;
} Decode;
typedef struct { size_t size; void *priv; const uint8_t *image; size_t bytes, total, populated, completed; } DataInfo;
typedef struct {
    size_t size; void *priv; struct sampling *object;
    const uint8_t *image; size_t bytes, sample; uint64_t start, end;
} SampleInfo;

struct host { size_t count; };
struct sampling { size_t device; uint64_t interval, last; int running, readings, full, stopped; };
struct image { uint32_t most, used; uint64_t times[][2]; };

static struct sampling samplings[GPUS];
static int overflows;

static int is(const char *name) {
    const char *given = getenv("PM_STAND_IN");
    return given && strcmp(given, name) == 0;
}

static uint64_t gpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return ((uint64_t)t.tv_sec + AHEAD_S) * 1000000000 + (uint64_t)t.tv_nsec;
}

int cuInit(unsigned flags) {
    (void)flags;
    if (is("slow")) sleep(60);
    return is("none") ? NO_DEVICE : OK;
}
int cuDriverGetVersion(int *version) { *version = 12090; return OK; }
int cuDeviceGetCount(int *count) { *count = GPUS; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return OK; }
int cuDeviceGetUuid(uint8_t *uuid, int device) {
    memset(uuid, device ? 0xbb : 0xaa, 4);
    memset(uuid + 4, 0, 12);
    uuid[15] = (uint8_t)device;
    return OK;
}

int cuptiGetVersion(uint32_t *version) { *version = 28; return OK; }
int cuptiProfilerInitialize(Plain *p) { TAKE(Plain, priv); return OK; }
int cuptiDeviceGetChipName(ChipName *p) { TAKE(ChipName, chip); p->chip = "GH100"; return OK; }

int cuptiPmSamplingGetCounterAvailability(Availability *p) {
    TAKE(Availability, image);
    if (is("denied")) return DENIED;
    if (p->image) memset(p->image, 7, 16);
    p->bytes = 16;
    return OK;
}

/* Percentages and rates by what a metric's name ends in or holds; what is not here this chip does not sample. */
static double value_of(const char *name, uint64_t start) {
    static const struct { const char *part; double value; } known[] = {
        {"sm__pipe_tensor_cycles_active_realtime.avg.pct", 62.5}, {"dramc__throughput.avg.pct", 48},
        {"nvltx__bytes.sum.per_second", 3e9},                     {"nvlrx__bytes.sum.per_second", 2e9},
        {"pcie__write_bytes.sum.per_second", 5e8},                {"pcie__read_bytes.sum.per_second", 6e8},
        {"hmma_cycles_active_realtime.avg.pct", 101.5},           {"imma_cycles_active_realtime.avg.pct", 0},
        {"tpc__warps_active_realtime.avg.pct", 25},               {"fp64_cycles_active_realtime.avg.pct", 1.0 / 3},
    };
    if (strncmp(name, "TPC.", 4) == 0 && strstr(name, "sm__cycles_active.avg.pct")) return (double)(start % 101);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(name, known[i].part)) return known[i].value;
    return -1;
}

int cuptiProfilerHostInitialize(HostInit *p) {
    TAKE(HostInit, host);
    if (p->type != 1 || strcmp(p->chip, "GH100") || !p->image || p->image[0] != 7) return INVALID;
    p->host = calloc(1, sizeof *p->host);
    return OK;
}
int cuptiProfilerHostDeinitialize(OfHost *p) { TAKE(OfHost, host); free(p->host); return OK; }
int cuptiProfilerHostConfigAddMetrics(AddMetrics *p) {
    TAKE(AddMetrics, count);
    for (size_t i = 0; i < p->count; i++)
        if (value_of(p->names[i], 0) < 0) return INVALID;
    p->host->count += p->count;
    return OK;
}
int cuptiProfilerHostGetConfigImageSize(ConfigSize *p) { TAKE(ConfigSize, bytes); p->bytes = 8; return OK; }
int cuptiProfilerHostGetConfigImage(Config *p) {
    TAKE(Config, config);
    if (p->bytes != 8) return INVALID;
    memcpy(p->config, &p->host->count, 8);
    return OK;
}
int cuptiProfilerHostGetNumOfPasses(Passes *p) {
    TAKE(Passes, passes);
    size_t count, most = is("small") ? 2 : 100;
    memcpy(&count, p->config, 8);
    p->passes = (count + most - 1) / most;
    return OK;
}

int cuptiPmSamplingEnable(EnableParams *p) {
    TAKE(EnableParams, object);
    if (is("held")) return BUSY;
    if (is("talks")) printf("CUPTI says hello\n"), fflush(stdout);
    struct sampling *one = &samplings[p->device];
    if (one->interval) return INVALID; /* enabled twice */
    *one = (struct sampling){.device = p->device, .interval = 1};
    p->object = one;
    return OK;
}
int cuptiPmSamplingDisable(OnObject *p) { TAKE(OnObject, object); p->object->interval = 0; return OK; }
int cuptiPmSamplingSetConfig(SetConfigParams *p) {
    TAKE(SetConfigParams, append);
    if (p->bytes != 8 || p->trigger != 1 || p->append != 0 || p->buffer < 1 << 20) return INVALID;
    p->object->interval = p->interval;
    return OK;
}
int cuptiPmSamplingStart(OnObject *p) {
    TAKE(OnObject, object);
    p->object->running = 1;
    p->object->last = gpu_ns();
    return OK;
}
int cuptiPmSamplingStop(OnObject *p) { TAKE(OnObject, object); p->object->stopped = 1; return OK; }
int cuptiPmSamplingGetCounterDataSize(DataSize *p) {
    TAKE(DataSize, bytes);
    p->bytes = sizeof(struct image) + p->most * 16;
    return OK;
}
int cuptiPmSamplingCounterDataImageInitialize(ImageInit *p) {
    TAKE(ImageInit, image);
    struct image *image = (struct image *)p->image;
    image->most = (uint32_t)((p->bytes - sizeof *image) / 16);
    image->used = 0;
    return OK;
}

int cuptiPmSamplingDecodeData(Decode *p) {
    TAKE(Decode, overflow);
    struct sampling *one = p->object;
    struct image *image = (struct image *)p->image;
    if (!one->running || image->used) return INVALID; /* an image that was not emptied takes nothing */
    one->readings++;
    if (is("crash") && one->readings == 4) abort();
    if (is("stuck") && one->readings == 3) sleep(60);
    if ((is("overflow") || is("flag")) && one->readings == 3 && !overflows) one->full = 1;
    if (is("late") && one->stopped) one->full = 1;
    if (one->full) {
        overflows = 1;
        p->overflow = 1;
        if (!is("flag")) return OUT_OF_MEMORY;
    }
    uint64_t now = gpu_ns();
    for (; one->last + one->interval <= now && image->used < image->most; one->last += one->interval) {
        image->times[image->used][0] = one->last;
        image->times[image->used++][1] = one->last + one->interval;
    }
    p->reason = image->used < image->most ? 2 : 1;
    for (int i = 0; one->stopped && i < 2 && image->used < image->most; i++) /* of no length, as seen after a stop */
        image->times[image->used][0] = image->times[image->used][1] = 1, image->used++;
    return OK;
}
int cuptiPmSamplingGetCounterDataInfo(DataInfo *p) {
    TAKE(DataInfo, completed);
    p->completed = ((const struct image *)p->image)->used;
    return OK;
}
int cuptiPmSamplingCounterDataGetSampleInfo(SampleInfo *p) {
    TAKE(SampleInfo, end);
    const struct image *image = (const struct image *)p->image;
    if (p->sample >= image->used) return INVALID;
    p->start = image->times[p->sample][0];
    p->end = image->times[p->sample][1];
    return OK;
}
int cuptiProfilerHostEvaluateToGpuValues(Evaluate *p) {
    TAKE(Evaluate, values);
    const struct image *image = (const struct image *)p->image;
    if (p->count != p->host->count || p->range >= image->used) return INVALID;
    for (size_t i = 0; i < p->count; i++) p->values[i] = value_of(p->names[i], image->times[p->range][0]);
    return OK;
}
