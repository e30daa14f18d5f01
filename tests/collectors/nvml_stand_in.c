/* TEST ONLY: libnvidia-ml.so.1 with the entry points and struct layouts of nvml.h that moescope uses, for two GPUs that
 * do not exist. What each figure is stands here and again, as literals, in test_gpu_samples.py.
 *
 * NVML_STAND_IN names the case: "hopper" (default), "ampere" (no GPM, old names), "denied" (GPM forbidden), "held" (GPM
 * held by another profiler), "stopped" (driver not loaded). */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_LOADED = 9, NO_FUNCTION = 13, IN_USE = 19 };
enum { GPUS = 2, LINKS = 3 };

typedef struct device { int index; } *Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilisation;
typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, pci_device, subsystem;
    char bus_id[32];
} Pci;
typedef union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; } Value;
typedef struct {
    unsigned int field, scope;
    long long timestamp, latency_us;
    int type, status;
    Value value;
} Field;
typedef struct { unsigned int version, supported; } GpmSupport;
typedef struct sample { Device device; int64_t t_ns; } *Sample;
typedef struct {
    unsigned int id;
    int status;
    double value;
    struct { char *short_name, *long_name, *unit; } info;
} Metric;
typedef struct { unsigned int version, count; Sample first, second; Metric metrics[]; } MetricsGet;

static struct device devices[GPUS] = {{0}, {1}};
static uint64_t counted[GPUS][LINKS][2];

static int is(const char *name) {
    const char *given = getenv("NVML_STAND_IN");
    return strcmp(given ? given : "hopper", name) == 0;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int text(char *to, unsigned int room, const char *from) {
    if (room <= strlen(from)) return 7;
    strcpy(to, from);
    return OK;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return is("stopped") ? NOT_LOADED : OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }
int nvmlSystemGetDriverVersion(char *to, unsigned int room) { return text(to, room, "999.1"); }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = GPUS; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device *to) {
    if (index >= GPUS) return INVALID;
    *to = &devices[index];
    return OK;
}

int nvmlDeviceGetUUID(Device d, char *to, unsigned int room) {
    return text(to, room, d->index ? "GPU-bbbbbbbb-0000-0000-0000-000000000001" : "GPU-aaaaaaaa-0000-0000-0000-000000000000");
}

int nvmlDeviceGetName(Device d, char *to, unsigned int room) {
    (void)d;
    return text(to, room, is("ampere") ? "NVIDIA A100-SXM4-80GB" : "NVIDIA H100 80GB HBM3");
}

static int pci(int index, Pci *to) {
    memset(to, 0, sizeof *to);
    strcpy(to->bus_id, index ? "00000000:2b:00.0" : "00000000:1B:00.0");
    return OK;
}

int nvmlDeviceGetPciInfo_v3(Device d, Pci *to) { return pci(d->index, to); }
int nvmlDeviceGetMemoryInfo(Device d, Memory *to) {
    to->total = 80ull << 30;
    to->used = (10ull + (unsigned)d->index) << 30;
    to->free = to->total - to->used;
    return OK;
}
int nvmlDeviceGetPowerUsage(Device d, unsigned int *to) { (void)d; *to = 350500; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(Device d, unsigned int *to) { (void)d; *to = 700000; return OK; }
int nvmlDeviceGetClockInfo(Device d, int kind, unsigned int *to) { (void)d; *to = kind == 2 ? 2619 : 1755; return OK; }
int nvmlDeviceGetMaxClockInfo(Device d, int kind, unsigned int *to) { (void)d; *to = kind == 2 ? 2619 : 1980; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(Device d, unsigned long long *to) {
    if (is("ampere")) return NO_FUNCTION;
    *to = d->index ? 0 : 0x44; /* power cap, thermal (hardware) */
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Device d, unsigned long long *to) { (void)d; *to = 0x1; return OK; }
int nvmlDeviceGetTemperature(Device d, int sensor, unsigned int *to) { (void)d; (void)sensor; *to = 61; return OK; }
int nvmlDeviceGetTotalEccErrors(Device d, int kind, int counter, unsigned long long *to) {
    (void)counter;
    *to = kind ? 0 : 5 + (unsigned)d->index;
    return OK;
}
int nvmlDeviceGetUtilizationRates(Device d, Utilisation *to) { (void)d; to->gpu = 97; to->memory = 40; return OK; }
int nvmlDeviceGetMigMode(Device d, unsigned int *now, unsigned int *next) { (void)d; *now = *next = 0; return OK; }
int nvmlDeviceGetEccMode(Device d, int *now, int *next) { (void)d; *now = *next = 1; return OK; }
int nvmlDeviceGetCudaComputeCapability(Device d, int *major, int *minor) { (void)d; *major = 9; *minor = 0; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(Device d, unsigned int *to) { (void)d; *to = 5; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(Device d, unsigned int *to) { (void)d; *to = 16; return OK; }
int nvmlDeviceGetTopologyCommonAncestor(Device a, Device b, int *to) { (void)a; (void)b; *to = 50; return OK; }

/* The last link is down; the others lead to the other GPU. */
int nvmlDeviceGetNvLinkState(Device d, unsigned int link, unsigned int *up) {
    (void)d;
    if (link >= LINKS) return INVALID;
    *up = link < LINKS - 1;
    return OK;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(Device d, unsigned int link, int *to) { (void)d; (void)link; *to = 0; return OK; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device d, unsigned int link, Pci *to) { (void)link; return pci(1 - d->index, to); }

/* Each read of link l finds (l + 1) * 10 KiB more sent and half as many received. */
static void field(Device d, Field *f) {
    f->status = OK;
    f->type = 3;
    f->timestamp = now_ns() / 1000;
    if (f->field == 91) {
        f->type = 1;
        f->value.ui = LINKS;
    } else if (f->field == 164 && f->scope < LINKS) {
        f->type = 1;
        f->value.ui = 26562;
    } else if ((f->field == 138 || f->field == 139) && f->scope < LINKS) {
        uint64_t *count = &counted[d->index][f->scope][f->field - 138];
        f->value.ull = *count += (f->scope + 1) * (f->field == 138 ? 10 : 5);
    } else {
        f->status = NOT_SUPPORTED;
    }
}

int nvmlDeviceGetFieldValues(Device d, int count, Field *fields) {
    for (int i = 0; i < count; i++) field(d, &fields[i]);
    return OK;
}

int nvmlGpmQueryDeviceSupport(Device d, GpmSupport *to) {
    (void)d;
    if (to->version != 1) return 24;
    to->supported = !is("ampere");
    return OK;
}
int nvmlGpmSampleAlloc(Sample *to) { return (*to = calloc(1, sizeof **to)) ? OK : 20; }
int nvmlGpmSampleFree(Sample sample) { free(sample); return OK; }
int nvmlGpmSampleGet(Device d, Sample sample) {
    if (is("denied")) return NO_PERMISSION;
    if (is("held")) return IN_USE;
    sample->device = d;
    sample->t_ns = now_ns();
    return OK;
}

int nvmlGpmMetricsGet(MetricsGet *asked) {
    if (asked->version != 1) return 24;
    if (asked->first->device != asked->second->device || asked->second->t_ns - asked->first->t_ns < 100000000) return INVALID;
    for (unsigned int i = 0; i < asked->count; i++) {
        Metric *m = &asked->metrics[i];
        m->status = OK;
        switch (m->id) {
        case 2: m->value = 91.0; break;
        case 3: m->value = 25.0; break;
        case 5: m->value = asked->first->device->index ? 12.5 : 62.5; break;
        case 7: m->value = 62.0; break;
        case 9: m->value = 0.0; break;
        case 10: m->value = 48.0; break;
        case 20: m->value = 512.0; break;
        case 21: m->value = 256.0; break;
        case 60: m->value = 3000.0; break;
        case 61: m->value = 2000.0; break;
        default: m->status = NOT_SUPPORTED;
        }
    }
    return OK;
}
