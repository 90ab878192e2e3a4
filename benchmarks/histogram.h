// Counts of values by size, 128 steps for each power of two: a percentile is less than 0.8 % off.
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#define STEP_BITS 7
#define BUCKETS ((64 - STEP_BITS + 1) << STEP_BITS)

struct histogram {
    uint64_t count, max;
    uint32_t buckets[BUCKETS];
};

static inline int bucket_of(uint64_t value)
{
    if (value < 1u << STEP_BITS) return value;
    int shift = 63 - __builtin_clzll(value) - STEP_BITS;
    return ((shift + 1) << STEP_BITS) + (value >> shift & ((1u << STEP_BITS) - 1));
}

static inline uint64_t bucket_start(int bucket)
{
    int shift = (bucket >> STEP_BITS) - 1;
    if (shift < 0) return bucket;
    return (uint64_t)((1u << STEP_BITS) | (bucket & ((1u << STEP_BITS) - 1))) << shift;
}

static inline void histogram_add(struct histogram *h, uint64_t value)
{
    h->count++;
    if (value > h->max) h->max = value;
    h->buckets[bucket_of(value)]++;
}

static inline uint64_t histogram_percentile(const struct histogram *h, double percent)
{
    uint64_t rank = percent / 100 * h->count, seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen > rank) return bucket_start(i);
    }
    return h->max;
}

#endif
