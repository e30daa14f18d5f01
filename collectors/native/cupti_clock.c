/* CUPTI's time as CLOCK_MONOTONIC.
 *
 * CUPTI's clock is CLOCK_REALTIME by default, or whatever PyTorch's profiler has registered (the processor's counter,
 * whose ticks are no nanoseconds). Registering ours would change the times of the user's own profiles, so both clocks are
 * read together four times a second, and times in between interpolated. What cannot be seen from here is how far off
 * CUPTI itself is when it turns the device's time into the host's. */
#include "cupti.h"

#include <stddef.h>

#include "ring.h"

#define READINGS 64u /* 16 s of them */
#define TRIES 5
#define BASELINE_NS 100000000

struct reading {
    uint64_t cupti;
    int64_t monotonic;
};

static struct reading readings[READINGS];
static uint64_t count;
static int64_t bracket_ns, residual_ns;

void cupti_clock_reset(void) {
    count = 0;
    bracket_ns = residual_ns = 0;
}

/* Between two readings, or on the line through them. */
static int64_t on_line(const struct reading *a, const struct reading *b, uint64_t cupti) {
    double rate = b->cupti > a->cupti ? (double)(b->monotonic - a->monotonic) / (double)(b->cupti - a->cupti) : 1.0;
    return a->monotonic + (int64_t)((double)(int64_t)(cupti - a->cupti) * rate);
}

void cupti_clock_read(int (*timestamp)(uint64_t *)) {
    struct reading best = {0, 0};
    int64_t width = INT64_MAX;
    for (int i = 0; i < TRIES; i++) {
        uint64_t cupti = 0;
        int64_t before = moescope_now_ns();
        int failed = timestamp(&cupti);
        int64_t after = moescope_now_ns();
        if (failed || !cupti || after - before >= width) continue;
        width = after - before;
        best = (struct reading){cupti, before + width / 2};
    }
    if (width == INT64_MAX) return;
    const struct reading *last = count ? &readings[(count - 1) % READINGS] : NULL;
    if (last && best.cupti <= last->cupti) return; /* it was set back: the line through what was read goes on */
    const struct reading *earlier = count > 1 ? &readings[(count - 2) % READINGS] : NULL;
    /* Two that lie close together tell no rate, and nothing is reckoned beyond them for long. */
    if (earlier && last->monotonic - earlier->monotonic >= BASELINE_NS) {
        int64_t off = best.monotonic - on_line(earlier, last, best.cupti);
        if (off < 0) off = -off;
        if (off > residual_ns) residual_ns = off;
    }
    if (width / 2 > bracket_ns) bracket_ns = width / 2;
    readings[count++ % READINGS] = best;
}

int64_t cupti_clock_monotonic(uint64_t cupti) {
    if (!count) return (int64_t)cupti;
    const struct reading *b = &readings[(count - 1) % READINGS];
    if (count == 1) return b->monotonic + (int64_t)(cupti - b->cupti);
    uint64_t oldest = count > READINGS ? count - READINGS : 0;
    uint64_t at = count - 1;
    while (at > oldest + 1 && readings[(at - 1) % READINGS].cupti > cupti) at--;
    return on_line(&readings[(at - 1) % READINGS], &readings[at % READINGS], cupti);
}

int64_t cupti_clock_error_ns(void) { return bracket_ns + residual_ns; }

uint64_t cupti_clock_readings(void) { return count; }
