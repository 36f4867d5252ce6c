// Vectors of numbers: the one place that knows how wide the machine's are. They are written out where GCC makes slow
// code of a plain loop, with the vectors of GCC and Clang; on other compilers a vector is a plain number.
//
// Pack<T, N>: N numbers that are worked on at once, whatever the width of the machine's vectors, so that what is summed
// rounds the same on every instruction set. GCC unrolls a loop over 16 accumulators into scalar code, three times
// slower; and it turns a loop with a comparison at its end into shuffles and stores that cost more than the arithmetic
// (two to three times as much).
//
// at_least() and the functions after it: comparisons of 16 numbers that give a bit for each. GCC unrolls the plain loop
// before it could vectorise it, into 16 compares and sets: 215 cycles for a block of anchors where this takes about 40.
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

#if defined(__AVX512F__)
constexpr std::size_t kVectorBytes = 64;
#elif defined(__AVX__)
constexpr std::size_t kVectorBytes = 32;
#else
constexpr std::size_t kVectorBytes = 16;
#endif

// --- N numbers

// N is a power of two.
template <typename T, int N>
class Pack {
    static constexpr std::size_t kBytes = N * sizeof(T) < kVectorBytes ? N * sizeof(T) : kVectorBytes;
#if defined(__GNUC__)
    typedef T Vector __attribute__((vector_size(kBytes)));
#else
    using Vector = T;
#endif
    static constexpr int kParts = N * sizeof(T) / sizeof(Vector), kPartSize = N / kParts;

  public:
    static constexpr int64_t kCount = N;

    // Yes or no for each number.
    struct Mask {
        using Part = decltype(Vector{} > Vector{});

        Part parts[kParts];

        friend FASTSSD_INLINE Mask operator|(Mask a, const Mask& b) {
            for (int i = 0; i < kParts; ++i) a.parts[i] |= b.parts[i];
            return a;
        }
        friend FASTSSD_INLINE Mask operator^(Mask a, const Mask& b) {
            for (int i = 0; i < kParts; ++i) a.parts[i] ^= b.parts[i];
            return a;
        }
        friend FASTSSD_INLINE bool any(const Mask& mask) {
            Part either = mask.parts[0];
            for (int i = 1; i < kParts; ++i) either |= mask.parts[i];
            if constexpr (sizeof(Part) < sizeof(uint64_t)) {
                return either != 0;
            } else {
                uint64_t words[sizeof(Part) / sizeof(uint64_t)], all = 0;
                std::memcpy(words, &either, sizeof(either));
                for (const uint64_t word : words) all |= word;
                return all != 0;
            }
        }
    };

    static FASTSSD_INLINE Pack all(T x) {
        Pack pack;
        for (Vector& part : pack.parts_) part = x - Vector{};
        return pack;
    }
    // Part by part, which GCC keeps in registers.
    static FASTSSD_INLINE Pack load(const T* from) {
        Pack pack;
        for (int i = 0; i < kParts; ++i) std::memcpy(&pack.parts_[i], from + i * kPartSize, sizeof(Vector));
        return pack;
    }
    FASTSSD_INLINE void store(T* to) const {
        for (int i = 0; i < kParts; ++i) std::memcpy(to + i * kPartSize, &parts_[i], sizeof(Vector));
    }
    FASTSSD_INLINE T get(int i) const {
        if constexpr (kPartSize == 1) {
            return parts_[i];
        } else {
            return parts_[i / kPartSize][i % kPartSize];
        }
    }
    FASTSSD_INLINE void set(int i, T x) {
        if constexpr (kPartSize == 1) {
            parts_[i] = x;
        } else {
            parts_[i / kPartSize][i % kPartSize] = x;
        }
    }

    friend FASTSSD_INLINE Pack operator+(Pack a, const Pack& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] += b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE Pack operator-(Pack a, const Pack& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] -= b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE Pack operator*(Pack a, const Pack& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] *= b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE Pack operator/(Pack a, const Pack& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] /= b.parts_[i];
        return a;
    }
    // b where a is NaN, as of the next.
    friend FASTSSD_INLINE Pack smaller(Pack a, const Pack& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] = a.parts_[i] < b.parts_[i] ? a.parts_[i] : b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE Pack larger(Pack a, const Pack& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] = a.parts_[i] > b.parts_[i] ? a.parts_[i] : b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE Mask above(const Pack& a, const Pack& b) {
        Mask mask;
        for (int i = 0; i < kParts; ++i) mask.parts[i] = a.parts_[i] > b.parts_[i];
        return mask;
    }
    friend FASTSSD_INLINE Mask reaches(const Pack& a, const Pack& b) {
        Mask mask;
        for (int i = 0; i < kParts; ++i) mask.parts[i] = a.parts_[i] >= b.parts_[i];
        return mask;
    }
    // a where yes, else b.
    friend FASTSSD_INLINE Pack choose(const Mask& yes, Pack a, const Pack& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] = yes.parts[i] ? a.parts_[i] : b.parts_[i];
        return a;
    }

    // fn of every part; a part is a vector of T or a number.
    template <typename Fn>
    FASTSSD_INLINE Pack each(const Fn& fn) const {
        Pack result = *this;
        for (Vector& part : result.parts_) part = fn(part);
        return result;
    }

    FASTSSD_INLINE T sum() const {
        return folded([](T a, T b) { return a + b; });
    }
    FASTSSD_INLINE T largest() const {
        return folded([](T a, T b) { return a > b ? a : b; });
    }

  private:
    // The upper half is folded into the lower half until one number is left.
    template <typename Fold>
    FASTSSD_INLINE T folded(const Fold& fold) const {
        static_assert(N == 16);
        T numbers[N];
        store(numbers);
        for (int i = 0; i < 8; ++i) numbers[i] = fold(numbers[i], numbers[i + 8]);
        for (int i = 0; i < 4; ++i) numbers[i] = fold(numbers[i], numbers[i + 4]);
        for (int i = 0; i < 2; ++i) numbers[i] = fold(numbers[i], numbers[i + 2]);
        return fold(numbers[0], numbers[1]);
    }

    Vector parts_[kParts];
};

template <typename T>
using Four = Pack<T, 4>;
template <typename T>
using Lanes = Pack<T, 16>;

// Of a row of at least 16 numbers, the largest in each of 16 lanes. The last block overlaps the one before. NaN is
// ignored.
template <typename T>
FASTSSD_INLINE Lanes<T> max_lanes(const T* values, int64_t n) {
    constexpr int64_t kLanes = Lanes<T>::kCount;
    Lanes<T> most = Lanes<T>::all(-kInf<T>);
    for (int64_t begin = 0; begin + kLanes <= n; begin += kLanes) most = larger(Lanes<T>::load(values + begin), most);
    return larger(Lanes<T>::load(values + n - kLanes), most);
}

// --- 16 numbers in memory, and a bit for each

constexpr int64_t kMaskWidth = 16;
constexpr std::size_t kMaskBytes = kVectorBytes < 32 ? kVectorBytes : 32;  // the widest that has a movemask

// One vector of T, compared into as many bits.
template <typename T>
struct MaskVector {
    static constexpr int kSize = 1;
    T value;

    static MaskVector load(const T* from) { return {*from}; }
    static MaskVector all(T value) { return {value}; }
    uint64_t operator>(MaskVector other) const { return value > other.value; }
    uint64_t operator>=(MaskVector other) const { return value >= other.value; }
};

#if defined(__AVX__)
template <>
struct MaskVector<float> {
    static constexpr int kSize = 8;
    __m256 value;

    static uint64_t bits(__m256 mask) { return static_cast<uint64_t>(_mm256_movemask_ps(mask)); }
    static MaskVector load(const float* from) { return {_mm256_loadu_ps(from)}; }
    static MaskVector all(float value) { return {_mm256_set1_ps(value)}; }
    uint64_t operator>(MaskVector other) const { return bits(_mm256_cmp_ps(value, other.value, _CMP_GT_OQ)); }
    uint64_t operator>=(MaskVector other) const { return bits(_mm256_cmp_ps(value, other.value, _CMP_GE_OQ)); }
};
template <>
struct MaskVector<double> {
    static constexpr int kSize = 4;
    __m256d value;

    static uint64_t bits(__m256d mask) { return static_cast<uint64_t>(_mm256_movemask_pd(mask)); }
    static MaskVector load(const double* from) { return {_mm256_loadu_pd(from)}; }
    static MaskVector all(double value) { return {_mm256_set1_pd(value)}; }
    uint64_t operator>(MaskVector other) const { return bits(_mm256_cmp_pd(value, other.value, _CMP_GT_OQ)); }
    uint64_t operator>=(MaskVector other) const { return bits(_mm256_cmp_pd(value, other.value, _CMP_GE_OQ)); }
};
#elif defined(__SSE2__) || defined(_M_X64)
template <>
struct MaskVector<float> {
    static constexpr int kSize = 4;
    __m128 value;

    static uint64_t bits(__m128 mask) { return static_cast<uint64_t>(_mm_movemask_ps(mask)); }
    static MaskVector load(const float* from) { return {_mm_loadu_ps(from)}; }
    static MaskVector all(float value) { return {_mm_set1_ps(value)}; }
    uint64_t operator>(MaskVector other) const { return bits(_mm_cmpgt_ps(value, other.value)); }
    uint64_t operator>=(MaskVector other) const { return bits(_mm_cmpge_ps(value, other.value)); }
};
template <>
struct MaskVector<double> {
    static constexpr int kSize = 2;
    __m128d value;

    static uint64_t bits(__m128d mask) { return static_cast<uint64_t>(_mm_movemask_pd(mask)); }
    static MaskVector load(const double* from) { return {_mm_loadu_pd(from)}; }
    static MaskVector all(double value) { return {_mm_set1_pd(value)}; }
    uint64_t operator>(MaskVector other) const { return bits(_mm_cmpgt_pd(value, other.value)); }
    uint64_t operator>=(MaskVector other) const { return bits(_mm_cmpge_pd(value, other.value)); }
};
#endif

// The bits of wants(vector of values, index of its first value), one vector after the other.
template <typename T, typename Wants>
uint64_t mask_of(const T* values, const Wants& wants) {
    uint64_t mask = 0;
    for (int i = 0; i < kMaskWidth; i += MaskVector<T>::kSize) mask |= wants(MaskVector<T>::load(values + i), i) << i;
    return mask;
}

// Bit i: values[i] >= limit.
template <typename T>
uint64_t at_least(const T* values, T limit) {
    const auto limits = MaskVector<T>::all(limit);
    return mask_of(values, [&](MaskVector<T> value, int) { return value >= limits; });
}

// Bit i: values[i] > limits[i].
template <typename T>
uint64_t above(const T* values, const T* limits) {
    return mask_of(values, [&](MaskVector<T> value, int i) { return value > MaskVector<T>::load(limits + i); });
}

// Bit i: values[i] > limit.
template <typename T>
uint64_t above(const T* values, T limit) {
    const auto limits = MaskVector<T>::all(limit);
    return mask_of(values, [&](MaskVector<T> value, int) { return value > limits; });
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
        const Values larger_value = better ? value : old;
        const Indices its_index = better ? indices : old_which;
        std::memcpy(best + i, &larger_value, kMaskBytes);
        std::memcpy(which + i, &its_index, kMaskBytes);
    }
#else
    for (int i = 0; i < kMaskWidth; ++i) {
        const bool better = values[i] > best[i];
        best[i] = better ? values[i] : best[i];
        which[i] = better ? index : which[i];
    }
#endif
}

// The place of the lowest bit that is set; there must be one.
inline int64_t lowest_bit(uint64_t bits) {
#if defined(_MSC_VER)
    unsigned long place;
    _BitScanForward64(&place, bits);
    return static_cast<int64_t>(place);
#else
    return __builtin_ctzll(bits);
#endif
}

// One of 16 values, chosen by pick(a, b), which takes vectors too.
template <typename T, typename Pick>
T choose_of(const T* values, const Pick& pick) {
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
    if constexpr (sizeof(T) == 4) {
        half = pick(half, Half{half[2], half[3], half[0], half[1]});
        half = pick(half, Half{half[1], half[0], half[3], half[2]});
    } else {
        half = pick(half, Half{half[1], half[0]});
    }
    return half[0];
#else
    T best = values[0];
    for (int i = 1; i < kMaskWidth; ++i) best = pick(best, values[i]);
    return best;
#endif
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
