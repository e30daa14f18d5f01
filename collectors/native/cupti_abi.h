/* What is used of CUPTI's activity interface (cupti_activity.h, cupti_result.h, cupti_*_cbid.h), declared again for the
 * fields read here: nothing of CUPTI is needed to build, and one binary serves CUDA 12 and 13. Records grow at their end
 * from version to version (kernels: Kernel9 of 12.4 to Kernel13 of 13.5), the fields below stay where they are: held
 * against NVIDIA's own headers by `python -m benchmarks.cupti_layout`. */
#ifndef MOESCOPE_CUPTI_ABI_H
#define MOESCOPE_CUPTI_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum cupti_result { CUPTI_OK = 0, CUPTI_NO_MORE_RECORDS = 12 };

enum cupti_kind {
    CUPTI_MEMCPY = 1,
    CUPTI_MEMSET = 2,
    CUPTI_DRIVER = 4,
    CUPTI_RUNTIME = 5,
    CUPTI_CONCURRENT_KERNEL = 10,
    CUPTI_MEMCPY2 = 22, /* between two devices */
    CUPTI_SYNCHRONIZATION = 38,
    CUPTI_EXTERNAL_CORRELATION = 39
};

#define CUPTI_FLUSH_FORCED 1u
#define CUPTI_EXTERNAL_CUSTOM2 5u /* ours: PyTorch's profiler uses CUSTOM0 and CUSTOM1 */
#define CUPTI_NO_STREAM 0xFFFFFFFFu

struct cupti_record {
    uint32_t kind;
};

struct cupti_kernel {
    uint32_t kind;
    uint8_t cache_config, shared_config;
    uint16_t registers;
    uint32_t partitioned[2];
    uint64_t start, end, completed;
    uint32_t device, context, stream;
    int32_t grid[3], block[3];
    int32_t static_shared, dynamic_shared;
    uint32_t local_thread, local_total, correlation;
    int64_t grid_id;
    const char *name;
    void *reserved;
    uint64_t queued, submitted;
    uint8_t launch_type, window_set, carveout, carveout_set;
    uint32_t executed_shared;
    uint64_t graph_node;
    uint32_t memory_config, graph;
};

struct cupti_memcpy {
    uint32_t kind;
    uint8_t copy_kind, source_kind, destination_kind, flags;
    uint64_t bytes, start, end;
    uint32_t device, context, stream, correlation, runtime_correlation, padding;
    void *reserved;
    uint64_t graph_node;
    uint32_t graph;
};

struct cupti_memcpy2 {
    uint32_t kind;
    uint8_t copy_kind, source_kind, destination_kind, flags;
    uint64_t bytes, start, end;
    uint32_t device, context, stream;
    uint32_t source_device, source_context, destination_device, destination_context;
    uint32_t correlation;
    void *reserved;
    uint64_t graph_node;
    uint32_t graph;
};

struct cupti_memset {
    uint32_t kind;
    uint32_t value;
    uint64_t bytes, start, end;
    uint32_t device, context, stream, correlation;
    uint16_t flags, memory_kind;
    uint32_t padding;
    void *reserved;
    uint64_t graph_node;
    uint32_t graph;
};

struct cupti_synchronization {
    uint32_t kind;
    uint32_t type; /* 1 event, 2 a stream waits for an event, 3 stream, 4 context */
    uint64_t start, end;
    uint32_t correlation, context, stream, event;
};

struct cupti_api {
    uint32_t kind;
    uint32_t function;
    uint64_t start, end;
    uint32_t process, thread, correlation, result;
};

struct cupti_external {
    uint32_t kind;
    uint32_t external_kind;
    uint64_t external_id;
    uint32_t correlation;
};

/* Where a compiler lays the fields out otherwise, there is no decoding by it. */
static_assert(offsetof(struct cupti_kernel, start) == 16 && offsetof(struct cupti_kernel, device) == 40, "kernel times");
static_assert(offsetof(struct cupti_kernel, grid) == 52 && offsetof(struct cupti_kernel, correlation) == 92, "kernel launch");
static_assert(offsetof(struct cupti_kernel, name) == 104 && offsetof(struct cupti_kernel, graph_node) == 144, "kernel name");
static_assert(offsetof(struct cupti_kernel, graph) == 156, "kernel graph");
static_assert(offsetof(struct cupti_memcpy, correlation) == 44 && offsetof(struct cupti_memcpy, graph_node) == 64, "memcpy");
static_assert(offsetof(struct cupti_memcpy2, correlation) == 60 && offsetof(struct cupti_memcpy2, graph_node) == 72, "memcpy2");
static_assert(offsetof(struct cupti_memset, correlation) == 44 && offsetof(struct cupti_memset, graph_node) == 64, "memset");
static_assert(offsetof(struct cupti_synchronization, correlation) == 24, "synchronization");
static_assert(offsetof(struct cupti_api, correlation) == 32 && offsetof(struct cupti_external, correlation) == 16, "correlation");

/* Calls whose number a device's record may bear: the only ones that are recorded, where CUPTI lets one choose (12.6). */
static const uint16_t cupti_runtime_calls[] = {
    /* cudaMemcpy… and cudaMemset… */
    31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 142, 143, 144, 145, 160, 161, 162, 163,
    215, 216, 217, 218, 219, 220, 221, 222, 223, 224, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 235, 236, 243, 244, 245,
    246, 249, 250, 482, 483, 484, 485, 509, 510, 511, 512, 554, 555, 556, 557,
    /* cudaLaunchKernel, …ExC, …Cooperative…, cudaGraphLaunch */
    211, 214, 269, 270, 272, 311, 312, 430, 431, 505, 506,
    /* cudaDeviceSynchronize, cudaStreamSynchronize, cudaEventSynchronize, cudaStreamWaitEvent */
    126, 131, 137, 147, 165, 239, 247,
};
static const uint16_t cupti_driver_calls[] = {
    /* cuLaunchKernel, …Ex, …Cooperative…, cuGraphLaunch */
    307, 442, 477, 478, 480, 514, 515, 652, 653,
    /* cuMemcpy… and cuMemset… */
    249, 250, 251, 252, 253, 254, 276, 277, 278, 279, 280, 281, 282, 283, 284, 285, 286, 287, 288, 289, 290, 291, 292, 293, 305,
    306, 318, 319, 320, 321, 216, 218, 220, 222, 224, 226, 397, 398, 399, 400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411,
    412, 413, 414, 415, 416, 418, 419, 420, 421, 422, 423, 424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 776, 777, 778, 779, 796,
    797, 798, 799, 837, 838, 839, 840,
    /* cuCtxSynchronize, cuStreamSynchronize, cuEventSynchronize, cuStreamWaitEvent */
    17, 121, 126, 295, 436, 440, 800,
};

#endif
