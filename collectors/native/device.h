/* What a device did, as it goes into the ring: blobs of kind DEVICE_KIND, each a row of these records.
 * Mirrored in collectors/sidecar/device.py. */
#ifndef MOESCOPE_DEVICE_H
#define MOESCOPE_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#define DEVICE_KIND "=device 2"

enum device_work { DEVICE_KERNEL = 1, DEVICE_COPY = 2, DEVICE_SET = 3, DEVICE_SYNC = 4 };

struct device_record {
    int64_t start_ns, dur_ns; /* CLOCK_MONOTONIC */
    uint64_t phase;           /* innermost phase around the launch, on the launching thread; 0: none */
    uint64_t graph_node;      /* 0: launched by itself */
    uint64_t bytes;           /* copied or set */
    uint64_t call;            /* the collective that launched it; 0: none, or not known */
    uint32_t name;
    uint32_t correlation; /* the launch; one of a CUDA graph has all of its kernels */
    uint32_t device;      /* DEVICE_UNKNOWN: a synchronisation of a context that has run nothing yet */
    uint32_t context, stream;
    uint32_t grid[3], block[3];
    uint32_t registers, shared_bytes;
    uint8_t work;
    uint8_t copy_kind; /* CUPTI's: 1 host to device, 2 device to host, 8 on the device, 10 between devices … */
    uint8_t joined;    /* the launch was seen: phase 0 then means that there was none around it */
    uint8_t reserved;
};

#define DEVICE_UNKNOWN 0xFFFFFFFFu

struct device_counts {
    uint64_t records;  /* written */
    uint64_t lost;     /* dropped by CUPTI, or for want of room in the ring */
    uint64_t untimed;  /* that CUPTI could give no times, or were unfinished when recording stopped */
    uint64_t unjoined; /* whose launch was not seen */
    uint64_t unknown;  /* of kinds that nobody asked for */
    uint64_t devices;  /* bit n: device n has run something */
};

/* Used by cupti.c, with its own lock held. */
void device_buffer(int (*next)(uint8_t *, size_t, void **), uint8_t *buffer, size_t valid, int64_t (*clock)(uint64_t));
void device_lost(uint64_t records);
void device_write(int all);
struct device_counts device_counts(void);
void device_forget(void);

#endif
