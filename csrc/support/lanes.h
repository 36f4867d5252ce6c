// Sixteen numbers side by side, whatever the width of the machine's vectors: what is summed in lanes rounds the same on
// every instruction set. Written with the vectors of GCC and Clang, because GCC unrolls a loop over sixteen
// accumulators into scalar code, three times slower; elsewhere the lanes are plain numbers.
#pragma once

#include <cstdint>
#include <cstring>

#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
class Lanes {
  public:
    static constexpr int64_t kCount = 16;

    explicit FASTSSD_INLINE Lanes(T all) {
        for (Vector& part : parts_) part = all - Vector{};
    }
    // Part by part, which GCC keeps in registers.
    explicit FASTSSD_INLINE Lanes(const T* from) {
        for (int i = 0; i < kParts; ++i) std::memcpy(&parts_[i], from + i * kCount / kParts, sizeof(Vector));
    }
    FASTSSD_INLINE void store(T* to) const {
        for (int i = 0; i < kParts; ++i) std::memcpy(to + i * kCount / kParts, &parts_[i], sizeof(Vector));
    }

    friend FASTSSD_INLINE Lanes operator+(Lanes a, const Lanes& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] += b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE Lanes operator-(Lanes a, const Lanes& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] -= b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE Lanes operator*(Lanes a, const Lanes& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] *= b.parts_[i];
        return a;
    }
    // b where a is NaN.
    friend FASTSSD_INLINE Lanes larger(Lanes a, const Lanes& b) {
        for (int i = 0; i < kParts; ++i) a.parts_[i] = a.parts_[i] > b.parts_[i] ? a.parts_[i] : b.parts_[i];
        return a;
    }
    friend FASTSSD_INLINE bool any_above(const Lanes& a, const Lanes& b) {
        auto mask = a.parts_[0] > b.parts_[0];
        for (int i = 1; i < kParts; ++i) mask |= a.parts_[i] > b.parts_[i];
        return any(mask);
    }
    friend FASTSSD_INLINE bool any_reaches(const Lanes& a, const Lanes& b) {
        auto mask = a.parts_[0] >= b.parts_[0];
        for (int i = 1; i < kParts; ++i) mask |= a.parts_[i] >= b.parts_[i];
        return any(mask);
    }

    // fn of every part; a part is a vector of T or a number.
    template <typename Fn>
    FASTSSD_INLINE Lanes each(const Fn& fn) const {
        Lanes result = *this;
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
#if defined(__GNUC__)
#if defined(__AVX512F__)
    static constexpr int kBytes = 64;
#elif defined(__AVX2__)
    static constexpr int kBytes = 32;
#else
    static constexpr int kBytes = 16;
#endif
    typedef T Vector __attribute__((vector_size(kBytes)));
#else
    using Vector = T;
#endif
    static constexpr int kParts = kCount * sizeof(T) / sizeof(Vector);

    template <typename Mask>
    static FASTSSD_INLINE bool any(const Mask& mask) {
        if constexpr (sizeof(Mask) < sizeof(uint64_t)) {
            return mask != 0;
        } else {
            uint64_t words[sizeof(Mask) / sizeof(uint64_t)], all = 0;
            std::memcpy(words, &mask, sizeof(mask));
            for (const uint64_t word : words) all |= word;
            return all != 0;
        }
    }

    // Halves upon halves.
    template <typename Fold>
    FASTSSD_INLINE T folded(const Fold& fold) const {
        T lanes[kCount];
        store(lanes);
        for (int64_t i = 0; i < 8; ++i) lanes[i] = fold(lanes[i], lanes[i + 8]);
        for (int64_t i = 0; i < 4; ++i) lanes[i] = fold(lanes[i], lanes[i + 4]);
        for (int64_t i = 0; i < 2; ++i) lanes[i] = fold(lanes[i], lanes[i + 2]);
        return fold(lanes[0], lanes[1]);
    }

    Vector parts_[kParts];
};

// The lanes of a row of at least kCount numbers, the largest of each; the last block overlaps the one before. NaN is
// passed over.
template <typename T>
FASTSSD_INLINE Lanes<T> max_lanes(const T* values, int64_t n) {
    constexpr int64_t kLanes = Lanes<T>::kCount;
    Lanes<T> most(-kInf<T>);
    for (int64_t begin = 0; begin + kLanes <= n; begin += kLanes) most = larger(Lanes<T>(values + begin), most);
    return larger(Lanes<T>(values + n - kLanes), most);
}

}  // namespace fastssd::FASTSSD_ISA
