// N numbers that are worked on at once, where a loop over N does not vectorise: GCC and Clang turn a loop with a
// yes or no at its end into shuffles and stores that cost more than the arithmetic (measured: 2 to 3 times as much).
// N is a power of two; what is wider than the machine's vectors is split by the compiler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "support/math.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

#if defined(__GNUC__)

template <typename T, int N>
struct Pack {
    template <typename Element>
    struct Vector {
        typedef Element Type __attribute__((vector_size(N * sizeof(T))));
    };
    using Numbers = typename Vector<T>::Type;
    using Words = typename Vector<typename Bits<T>::Signed>::Type;
    using Halves = typename Vector<int64_t>::Type;

    Numbers v;

    // Yes or no for each.
    struct Mask {
        Words v;

        friend FASTSSD_INLINE Mask operator|(const Mask& a, const Mask& b) { return {a.v | b.v}; }
        friend FASTSSD_INLINE Mask operator&(const Mask& a, const Mask& b) { return {a.v & b.v}; }
        friend FASTSSD_INLINE Mask operator^(const Mask& a, const Mask& b) { return {a.v ^ b.v}; }
        friend FASTSSD_INLINE bool any(const Mask& mask) {
            const Halves halves = reinterpret_cast<Halves>(mask.v);
            int64_t all = 0;
            for (std::size_t i = 0; i < sizeof halves / sizeof all; ++i) all |= halves[i];
            return all != 0;
        }
    };

    static FASTSSD_INLINE Pack all(T x) { return {x - Numbers{}}; }
    static FASTSSD_INLINE Pack load(const T* from) {
        Pack pack;
        std::memcpy(&pack.v, from, sizeof pack.v);
        return pack;
    }
    FASTSSD_INLINE void store(T* to) const { std::memcpy(to, &v, sizeof v); }
    FASTSSD_INLINE T get(int lane) const { return v[lane]; }
    FASTSSD_INLINE void set(int lane, T x) { v[lane] = x; }

    friend FASTSSD_INLINE Pack operator+(const Pack& a, const Pack& b) { return {a.v + b.v}; }
    friend FASTSSD_INLINE Pack operator-(const Pack& a, const Pack& b) { return {a.v - b.v}; }
    friend FASTSSD_INLINE Pack operator*(const Pack& a, const Pack& b) { return {a.v * b.v}; }
    friend FASTSSD_INLINE Pack operator/(const Pack& a, const Pack& b) { return {a.v / b.v}; }
    friend FASTSSD_INLINE Pack smaller(const Pack& a, const Pack& b) { return {a.v < b.v ? a.v : b.v}; }
    friend FASTSSD_INLINE Pack larger(const Pack& a, const Pack& b) { return {a.v > b.v ? a.v : b.v}; }
    friend FASTSSD_INLINE Mask above(const Pack& a, const Pack& b) { return {a.v > b.v}; }
    // a where yes, else b.
    friend FASTSSD_INLINE Pack choose(const Mask& yes, const Pack& a, const Pack& b) { return {yes.v ? a.v : b.v}; }
};

#else

template <typename T, int N>
struct Pack {
    T v[N];

    struct Mask {
        bool v[N];

        friend FASTSSD_INLINE Mask operator|(Mask a, const Mask& b) {
            for (int i = 0; i < N; ++i) a.v[i] |= b.v[i];
            return a;
        }
        friend FASTSSD_INLINE Mask operator&(Mask a, const Mask& b) {
            for (int i = 0; i < N; ++i) a.v[i] &= b.v[i];
            return a;
        }
        friend FASTSSD_INLINE Mask operator^(Mask a, const Mask& b) {
            for (int i = 0; i < N; ++i) a.v[i] ^= b.v[i];
            return a;
        }
        friend FASTSSD_INLINE bool any(const Mask& mask) {
            bool any = false;
            for (int i = 0; i < N; ++i) any |= mask.v[i];
            return any;
        }
    };

    template <typename Fn>
    static FASTSSD_INLINE Pack each(const Fn& fn) {
        Pack result;
        for (int lane = 0; lane < N; ++lane) result.v[lane] = fn(lane);
        return result;
    }
    static FASTSSD_INLINE Pack all(T x) {
        return each([&](int) { return x; });
    }
    static FASTSSD_INLINE Pack load(const T* from) {
        return each([&](int i) { return from[i]; });
    }
    FASTSSD_INLINE void store(T* to) const { std::memcpy(to, v, sizeof v); }
    FASTSSD_INLINE T get(int lane) const { return v[lane]; }
    FASTSSD_INLINE void set(int lane, T x) { v[lane] = x; }

    friend FASTSSD_INLINE Pack operator+(const Pack& a, const Pack& b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    friend FASTSSD_INLINE Pack operator-(const Pack& a, const Pack& b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    friend FASTSSD_INLINE Pack operator*(const Pack& a, const Pack& b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    friend FASTSSD_INLINE Pack operator/(const Pack& a, const Pack& b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    friend FASTSSD_INLINE Pack smaller(const Pack& a, const Pack& b) {
        return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend FASTSSD_INLINE Pack larger(const Pack& a, const Pack& b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend FASTSSD_INLINE Mask above(const Pack& a, const Pack& b) {
        Mask mask;
        for (int i = 0; i < N; ++i) mask.v[i] = a.v[i] > b.v[i];
        return mask;
    }
    friend FASTSSD_INLINE Pack choose(const Mask& yes, const Pack& a, const Pack& b) {
        return each([&](int i) { return yes.v[i] ? a.v[i] : b.v[i]; });
    }
};

#endif

constexpr int kFour = 4;

template <typename T>
using Four = Pack<T, kFour>;

}  // namespace fastssd::FASTSSD_ISA
