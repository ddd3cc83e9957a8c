// Vectors of the path that is being compiled, and what is done with them: arithmetic comes from the compiler's own
// vector types (GCC and Clang), so that one text serves AVX-512, AVX2, SSE2 and NEON.
//
// The build compiles each kernel file once a path with FASTAV_PATH set to its name and the compiler told its
// instructions. Everything lives in a namespace of that name.
#pragma once

#include <cstdint>

#include "host.h"

#define FASTAV_INLINE static inline __attribute__((always_inline))
#define FASTAV_MEMBER __attribute__((always_inline))

namespace fastav {
namespace FASTAV_PATH {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
constexpr int REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
constexpr int REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int BYTES = 16;
constexpr int REGISTERS = 32;
#else
constexpr int BYTES = 16;
constexpr int REGISTERS = 16;
#endif

typedef float FloatVector __attribute__((vector_size(BYTES)));
typedef double DoubleVector __attribute__((vector_size(BYTES)));
typedef int32_t IntVector __attribute__((vector_size(BYTES)));
typedef uint32_t UintVector __attribute__((vector_size(BYTES)));
typedef int64_t LongVector __attribute__((vector_size(BYTES)));
typedef uint16_t HalfBits __attribute__((vector_size(BYTES / 2)));

/// What goes with an element type: its vector, the vector of integers of its size, and numbers that `exp` wants.
template <class T>
struct Kind;

template <>
struct Kind<float> {
    using Vector = FloatVector;
    using Bits = IntVector;
    using Int = int32_t;
    static constexpr int terms = 7;  // r^8 / 8! < 6e-9 for |r| <= ln(2) / 2: below half a unit in the last place
    static constexpr int mantissa = 23;
    static constexpr Int bias = 127;
    static constexpr float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    static constexpr float smallest = -87.0f;      // exp of less is not a normal number
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <>
struct Kind<double> {
    using Vector = DoubleVector;
    using Bits = LongVector;
    using Int = int64_t;
    static constexpr int terms = 13;  // r^14 / 14! < 5e-18
    static constexpr int mantissa = 52;
    static constexpr Int bias = 1023;
    static constexpr double shifter = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double smallest = -708.0;
    static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
};

template <class T>
using Vector = typename Kind<T>::Vector;

template <class T>
constexpr int LANES = BYTES / int(sizeof(T));

template <class T>
FASTAV_INLINE Vector<T> splat(T value) {
    return value - Vector<T>{};
}

template <class T>
FASTAV_INLINE Vector<T> load(const T* from) {
    Vector<T> v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

template <class T>
FASTAV_INLINE void store(T* to, Vector<T> v) {
    __builtin_memcpy(to, &v, sizeof v);
}

/// The larger of both; NaN where `a` is NaN.
template <class T>
FASTAV_INLINE Vector<T> larger(Vector<T> a, Vector<T> b) {
    return a < b ? b : a;
}

/// All ones in the first `count` lanes, zeros in the others.
template <class T>
FASTAV_INLINE typename Kind<T>::Bits first_lanes(int64_t count) {
    typename Kind<T>::Bits lane{};
    for (int i = 0; i < LANES<T>; ++i) lane[i] = i;
    return lane < typename Kind<T>::Int(count);
}

/// The first `count` lanes, zeros in the others, whatever stood there.
template <class T>
FASTAV_INLINE Vector<T> keep_first(Vector<T> v, int64_t count) {
    return first_lanes<T>(count) ? v : Vector<T>{};
}

template <class T, int LENGTH>
struct Shorter {
    typedef T type __attribute__((vector_size(LENGTH * sizeof(T))));
};

template <class T, int LENGTH>
FASTAV_INLINE T sum_lanes(typename Shorter<T, LENGTH>::type v) {
    if constexpr (LENGTH == 2) {
        return v[0] + v[1];
    } else {
        typename Shorter<T, LENGTH / 2>::type low, high;
        __builtin_memcpy(&low, &v, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
        return sum_lanes<T, LENGTH / 2>(low + high);
    }
}

/// The sum of the lanes, always in the same order: the halves first.
template <class T>
FASTAV_INLINE T sum(Vector<T> v) {
    return sum_lanes<T, LANES<T>>(v);
}

template <class T>
constexpr T inverse_factorial(int k) {
    double product = 1;
    for (int i = 2; i <= k; ++i) product *= i;
    return T(1 / product);
}

/// e^x for x <= 0 (and a little above): 2^n e^r with n = round(x / ln 2), e^r by its series. 0 below
/// `Kind<T>::smallest`; NaN stays NaN.
template <class T>
FASTAV_INLINE Vector<T> exp(Vector<T> x) {
    using K = Kind<T>;
    const Vector<T> smallest = splat<T>(K::smallest);
    const auto vanishes = x < smallest;
    x = vanishes ? smallest : x;
    const Vector<T> shifted = x * T(1.44269504088896340736) + splat<T>(K::shifter);
    const Vector<T> n = shifted - splat<T>(K::shifter);
    const Vector<T> r = x - n * K::ln2_high - n * K::ln2_low;
    Vector<T> series = splat<T>(inverse_factorial<T>(K::terms));
    for (int k = K::terms - 1; k >= 0; --k) series = series * r + splat<T>(inverse_factorial<T>(k));
    typename K::Bits power;
    __builtin_memcpy(&power, &shifted, sizeof power);
    power = (power << K::mantissa) + (K::bias << K::mantissa);
    Vector<T> scale;
    __builtin_memcpy(&scale, &power, sizeof scale);
    return vanishes ? Vector<T>{} : series * scale;
}

}  // namespace FASTAV_PATH
}  // namespace fastav
