// Four numbers that are worked on at once, where a loop over four does not vectorise: GCC and Clang turn a loop with a
// yes or no at its end into shuffles and stores that cost more than the arithmetic (measured: 2 to 3 times as much).
#pragma once

#include <cstdint>

namespace fastssd::FASTSSD_ISA {

constexpr int kLaneCount = 4;

#if defined(__GNUC__)

template <typename T>
struct LanesOf;
template <>
struct LanesOf<float> {
    typedef float Type __attribute__((vector_size(16)));
    typedef int64_t Halves __attribute__((vector_size(16)));
};
template <>
struct LanesOf<double> {
    typedef double Type __attribute__((vector_size(32)));
    typedef int64_t Halves __attribute__((vector_size(32)));
};

template <typename T>
struct Lanes {
    using Halves = typename LanesOf<T>::Halves;

    typename LanesOf<T>::Type v;

    // Yes or no for each.
    struct Mask {
        Halves v;

        friend Mask operator|(const Mask& a, const Mask& b) { return {a.v | b.v}; }
        friend bool any(const Mask& mask) {
            if constexpr (sizeof(T) == 4) {
                return (mask.v[0] | mask.v[1]) != 0;
            } else {
                return ((mask.v[0] | mask.v[1]) | (mask.v[2] | mask.v[3])) != 0;
            }
        }
    };

    static Lanes all(T x) { return {typename LanesOf<T>::Type{x, x, x, x}}; }
    T get(int lane) const { return v[lane]; }
    void set(int lane, T x) { v[lane] = x; }

    friend Lanes operator+(const Lanes& a, const Lanes& b) { return {a.v + b.v}; }
    friend Lanes operator-(const Lanes& a, const Lanes& b) { return {a.v - b.v}; }
    friend Lanes operator*(const Lanes& a, const Lanes& b) { return {a.v * b.v}; }
    friend Lanes operator/(const Lanes& a, const Lanes& b) { return {a.v / b.v}; }
    friend Lanes smaller(const Lanes& a, const Lanes& b) { return {a.v < b.v ? a.v : b.v}; }
    friend Lanes larger(const Lanes& a, const Lanes& b) { return {a.v > b.v ? a.v : b.v}; }
    friend Mask above(const Lanes& a, const Lanes& b) { return {reinterpret_cast<Halves>(a.v > b.v)}; }
};

#else

template <typename T>
struct Lanes {
    T v[kLaneCount];

    struct Mask {
        bool v[kLaneCount];

        friend Mask operator|(const Mask& a, const Mask& b) {
            return {{a.v[0] || b.v[0], a.v[1] || b.v[1], a.v[2] || b.v[2], a.v[3] || b.v[3]}};
        }
        friend bool any(const Mask& mask) { return mask.v[0] || mask.v[1] || mask.v[2] || mask.v[3]; }
    };

    template <typename Fn>
    static Lanes each(const Fn& fn) {
        Lanes result;
        for (int lane = 0; lane < kLaneCount; ++lane) result.v[lane] = fn(lane);
        return result;
    }
    static Lanes all(T x) {
        return each([&](int) { return x; });
    }
    T get(int lane) const { return v[lane]; }
    void set(int lane, T x) { v[lane] = x; }

    friend Lanes operator+(const Lanes& a, const Lanes& b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    friend Lanes operator-(const Lanes& a, const Lanes& b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    friend Lanes operator*(const Lanes& a, const Lanes& b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    friend Lanes operator/(const Lanes& a, const Lanes& b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    friend Lanes smaller(const Lanes& a, const Lanes& b) {
        return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend Lanes larger(const Lanes& a, const Lanes& b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend Mask above(const Lanes& a, const Lanes& b) {
        Mask mask;
        for (int i = 0; i < kLaneCount; ++i) mask.v[i] = a.v[i] > b.v[i];
        return mask;
    }
};

#endif

}  // namespace fastssd::FASTSSD_ISA
