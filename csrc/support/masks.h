// Comparisons of 16 numbers at once that give a bit for each. GCC unrolls the plain loop below before it could
// vectorise it, into 16 compares and sets: 215 cycles for a block of anchors where this takes about 40.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "support/math.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(_MSC_VER)
#include <intrin.h>
#endif

namespace fastssd::FASTSSD_ISA {

constexpr int64_t kMaskWidth = 16;
#if defined(__AVX__)
constexpr std::size_t kMaskBytes = 32;
#else
constexpr std::size_t kMaskBytes = 16;
#endif

// One vector of T, and as many bits.
template <typename T>
struct MaskLanes {
    static constexpr int kSize = 1;
    T value;

    static MaskLanes load(const T* from) { return {*from}; }
    static MaskLanes all(T value) { return {value}; }
    uint64_t operator>(MaskLanes other) const { return value > other.value; }
    uint64_t operator>=(MaskLanes other) const { return value >= other.value; }
};

#if defined(__AVX__)
template <>
struct MaskLanes<float> {
    static constexpr int kSize = 8;
    __m256 value;

    static uint64_t bits(__m256 mask) { return static_cast<uint64_t>(_mm256_movemask_ps(mask)); }
    static MaskLanes load(const float* from) { return {_mm256_loadu_ps(from)}; }
    static MaskLanes all(float value) { return {_mm256_set1_ps(value)}; }
    uint64_t operator>(MaskLanes other) const { return bits(_mm256_cmp_ps(value, other.value, _CMP_GT_OQ)); }
    uint64_t operator>=(MaskLanes other) const { return bits(_mm256_cmp_ps(value, other.value, _CMP_GE_OQ)); }
};
template <>
struct MaskLanes<double> {
    static constexpr int kSize = 4;
    __m256d value;

    static uint64_t bits(__m256d mask) { return static_cast<uint64_t>(_mm256_movemask_pd(mask)); }
    static MaskLanes load(const double* from) { return {_mm256_loadu_pd(from)}; }
    static MaskLanes all(double value) { return {_mm256_set1_pd(value)}; }
    uint64_t operator>(MaskLanes other) const { return bits(_mm256_cmp_pd(value, other.value, _CMP_GT_OQ)); }
    uint64_t operator>=(MaskLanes other) const { return bits(_mm256_cmp_pd(value, other.value, _CMP_GE_OQ)); }
};
#elif defined(__SSE2__) || defined(_M_X64)
template <>
struct MaskLanes<float> {
    static constexpr int kSize = 4;
    __m128 value;

    static uint64_t bits(__m128 mask) { return static_cast<uint64_t>(_mm_movemask_ps(mask)); }
    static MaskLanes load(const float* from) { return {_mm_loadu_ps(from)}; }
    static MaskLanes all(float value) { return {_mm_set1_ps(value)}; }
    uint64_t operator>(MaskLanes other) const { return bits(_mm_cmpgt_ps(value, other.value)); }
    uint64_t operator>=(MaskLanes other) const { return bits(_mm_cmpge_ps(value, other.value)); }
};
template <>
struct MaskLanes<double> {
    static constexpr int kSize = 2;
    __m128d value;

    static uint64_t bits(__m128d mask) { return static_cast<uint64_t>(_mm_movemask_pd(mask)); }
    static MaskLanes load(const double* from) { return {_mm_loadu_pd(from)}; }
    static MaskLanes all(double value) { return {_mm_set1_pd(value)}; }
    uint64_t operator>(MaskLanes other) const { return bits(_mm_cmpgt_pd(value, other.value)); }
    uint64_t operator>=(MaskLanes other) const { return bits(_mm_cmpge_pd(value, other.value)); }
};
#endif

// Bit i says wants(i / the vector's size, vector of values): 16 values, a vector at a time.
template <typename T, typename Wants>
uint64_t mask_of(const T* values, const Wants& wants) {
    uint64_t mask = 0;
    for (int i = 0; i < kMaskWidth; i += MaskLanes<T>::kSize) mask |= wants(MaskLanes<T>::load(values + i), i) << i;
    return mask;
}

// Bit i says values[i] >= limit.
template <typename T>
uint64_t at_least(const T* values, T limit) {
    const auto limits = MaskLanes<T>::all(limit);
    return mask_of(values, [&](MaskLanes<T> value, int) { return value >= limits; });
}

// Bit i says values[i] > limits[i].
template <typename T>
uint64_t above(const T* values, const T* limits) {
    return mask_of(values, [&](MaskLanes<T> value, int i) { return value > MaskLanes<T>::load(limits + i); });
}

// Bit i says values[i] > limit.
template <typename T>
uint64_t above(const T* values, T limit) {
    const auto limits = MaskLanes<T>::all(limit);
    return mask_of(values, [&](MaskLanes<T> value, int) { return value > limits; });
}

// best[i] = values[i] and which[i] = index wherever values[i] > best[i].
template <typename T, typename Index>
void keep_larger(const T* values, Index index, T* FASTSSD_RESTRICT best, Index* FASTSSD_RESTRICT which) {
    static_assert(sizeof(T) == sizeof(Index));
#if defined(__GNUC__)
    typedef T Values __attribute__((vector_size(kMaskBytes)));
    typedef Index Indices __attribute__((vector_size(kMaskBytes)));
    const Indices indices = Indices{} + index;
    for (std::size_t i = 0; i < kMaskWidth; i += kMaskBytes / sizeof(T)) {
        Values value, old;
        Indices old_which;
        std::memcpy(&value, values + i, kMaskBytes);
        std::memcpy(&old, best + i, kMaskBytes);
        std::memcpy(&old_which, which + i, kMaskBytes);
        const auto better = value > old;
        const Values now = better ? value : old;
        const Indices now_which = better ? indices : old_which;
        std::memcpy(best + i, &now, kMaskBytes);
        std::memcpy(which + i, &now_which, kMaskBytes);
    }
#else
    for (int i = 0; i < kMaskWidth; ++i) {
        const bool better = values[i] > best[i];
        best[i] = better ? values[i] : best[i];
        which[i] = better ? index : which[i];
    }
#endif
}

// The place of the lowest bit; there must be one.
inline int64_t lowest_bit(uint64_t bits) {
#if defined(_MSC_VER)
    unsigned long place;
    _BitScanForward64(&place, bits);
    return static_cast<int64_t>(place);
#else
    return __builtin_ctzll(bits);
#endif
}

// One of 16 values, chosen by pick(a, b), which is asked of vectors too.
template <typename T, typename Pick>
T choose_of(const T* values, const Pick& pick) {
    T left[kMaskWidth];
    int size = kMaskWidth;
#if defined(__GNUC__)
    typedef T Values __attribute__((vector_size(kMaskBytes)));
    typedef T Half __attribute__((vector_size(16)));
    constexpr int kSize = kMaskBytes / sizeof(T);
    Values best, next;
    std::memcpy(&best, values, kMaskBytes);
    for (int i = kSize; i < kMaskWidth; i += kSize) {
        std::memcpy(&next, values + i, kMaskBytes);
        best = pick(best, next);
    }
    Half half, other;
    std::memcpy(&half, &best, sizeof half);
    if constexpr (kMaskBytes > sizeof half) {
        std::memcpy(&other, reinterpret_cast<const char*>(&best) + sizeof half, sizeof other);
        half = pick(half, other);
    }
    size = sizeof half / sizeof(T);
    std::memcpy(left, &half, sizeof half);
#else
    std::memcpy(left, values, sizeof left);
#endif
    for (size /= 2; size > 0; size /= 2) {
        for (int i = 0; i < size; ++i) left[i] = pick(left[i], left[i + size]);
    }
    return left[0];
}

template <typename T>
T most_of(const T* values) {
    return choose_of(values, [](const auto& a, const auto& b) { return a > b ? a : b; });
}

template <typename T>
T least_of(const T* values) {
    return choose_of(values, [](const auto& a, const auto& b) { return a < b ? a : b; });
}

}  // namespace fastssd::FASTSSD_ISA
