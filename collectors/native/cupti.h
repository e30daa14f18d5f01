/* Kernels, copies and synchronisation of NVIDIA GPUs, from CUPTI's activity API. */
#ifndef MOESCOPE_CUPTI_H
#define MOESCOPE_CUPTI_H

#include <stdint.h>

/* What the agent is told (mirrored in collectors/agent/cupti.py). */
struct cupti_facts {
    int64_t since_ns;       /* recording since; 0: it is off */
    int64_t clock_error_ns; /* of CUPTI's clock against CLOCK_MONOTONIC, at most as far as was measured */
    uint64_t clock_readings;
    uint64_t records, lost, untimed, unjoined, devices; /* as in struct device_counts */
    uint32_t version; /* cuptiGetVersion */
    uint32_t whole_apis; /* 1: CUPTI is too old to choose calls, all of them are recorded */
};

/* Used by cupti.c: pairs of CUPTI's time and CLOCK_MONOTONIC. */
void cupti_clock_reset(void);
void cupti_clock_read(int (*timestamp)(uint64_t *));
int64_t cupti_clock_monotonic(uint64_t cupti_ns);
int64_t cupti_clock_error_ns(void);
uint64_t cupti_clock_readings(void);

#endif
