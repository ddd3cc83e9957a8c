// Activations and their slopes, a vector at a time.
#pragma once

#include "vector.h"

namespace fastav {
namespace FASTAV_PATH {

/// The normal distribution, `erfc(-y / sqrt(2)) / 2`, as close as T holds it, far below zero too.
template <class T>
FASTAV_INLINE Vector<T> normal_distribution(Vector<T> y) {
    if constexpr (sizeof(T) == 8) {
        Vector<T> found = y;
        for (int i = 0; i < LANES<T>; ++i) found[i] = 0.5 * __builtin_erfc(y[i] * -0.70710678118654752440);
        return found;
    } else {
        // erfc(x) = t exp(-x^2 + p(t)) with t = 1 / (1 + x / 2), x >= 0: Chebyshev's p, relative error 1.2e-7
        // (Press and others, Numerical Recipes, 6.2).
        constexpr float terms[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                                   -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
        const Vector<T> magnitude = y < Vector<T>{} ? -y : y;
        const Vector<T> t = splat(1.0f) / (splat(1.0f) + magnitude * 0.35355339059f);
        Vector<T> p = splat(terms[0]);
        for (int i = 1; i < 10; ++i) p = p * t + splat(terms[i]);
        const Vector<T> tail = 0.5f * t * exp<T>(p - 0.5f * y * y);
        return y < Vector<T>{} ? tail : splat(1.0f) - tail;
    }
}

template <class T>
FASTAV_INLINE Vector<T> activate(Activation activation, Vector<T> y) {
    if (activation == Activation::gelu) return y * normal_distribution<T>(y);
    if (activation == Activation::relu) return y < Vector<T>{} ? Vector<T>{} : y;
    return y;
}

/// The derivative of `activate`.
template <class T>
FASTAV_INLINE Vector<T> slope(Activation activation, Vector<T> y) {
    const Vector<T> one = splat(T(1));
    if (activation == Activation::gelu)
        return normal_distribution<T>(y) + y * exp<T>(T(-0.5) * y * y) * T(0.39894228040143267794);
    if (activation == Activation::relu) return y > Vector<T>{} ? one : Vector<T>{};
    return one;
}

}  // namespace FASTAV_PATH
}  // namespace fastav
