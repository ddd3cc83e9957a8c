// Rows of tensors: read from any dtype and stride, normalised into panels, written back.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "multiply.h"

namespace fastav {
namespace FASTAV_PATH {

FASTAV_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTAV_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
FASTAV_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTAV_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

/// Panels of a row of `width` channels.
FASTAV_INLINE int64_t panels(int64_t width) { return divide_up(width, PANEL); }

template <class T>
FASTAV_INLINE T square_root(T x) {
    if constexpr (sizeof(T) == 4)
        return __builtin_sqrtf(x);
    else
        return __builtin_sqrt(x);
}

// ---- dtypes --------------------------------------------------------------------------------------------------------

FASTAV_INLINE float float_of(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

FASTAV_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

FASTAV_INLINE double widen(double x) { return x; }
FASTAV_INLINE float widen(float x) { return x; }
FASTAV_INLINE float widen(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
FASTAV_INLINE float widen(Float16 x) {
    // The exponent is moved from bias 15 to 127. Infinities and NaN go on to the largest exponent; subnormal numbers
    // get the smallest one's leading bit, which the subtraction takes off again.
    const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const uint32_t moved = magnitude + 0x38000000;
    const float normal = float_of(exponent == 0x0f800000 ? moved + 0x38000000 : moved);
    const float subnormal = float_of(moved + 0x00800000) - float_of(0x38800000);
    const float value = exponent == 0 ? subnormal : normal;
    return float_of(bits_of(value) | uint32_t(x.bits & 0x8000) << 16);
}

FASTAV_INLINE void narrow(float x, float& to) { to = x; }
FASTAV_INLINE void narrow(float x, BFloat16& to) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // to nearest, ties to even
    to.bits = uint16_t(x != x ? 0x7fc0 : rounded >> 16);
}
FASTAV_INLINE void narrow(float x, Float16& to) {
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // One unit in the last place of 0.5 is the smallest float16: the addition rounds.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t huge = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const uint32_t found = magnitude >= 0x47800000 ? huge : magnitude < 0x38800000 ? subnormal : normal;
    to.bits = uint16_t(found | (bits >> 16 & 0x8000));
}

/// Bytes of an element.
FASTAV_INLINE int64_t size_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64: return 8;
        case Dtype::float32: return 4;
        case Dtype::boolean: return 1;
        default: return 2;
    }
}

/// Where element (i, j) of the two leading dimensions begins.
FASTAV_INLINE char* at(const Operand& x, int64_t i, int64_t j = 0) {
    return x.data + (i * x.stride[0] + j * x.stride[1]) * size_of(x.dtype);
}

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

// ---- reading and writing -------------------------------------------------------------------------------------------

template <class T, class From>
static void read_as(const From* from, int64_t step, int64_t count, T* to) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && same<From, Float16>) {  // the compiler does not find the instruction by itself
        for (; step == 1 && count >= 16; count -= 16, from += 16, to += 16)
            _mm512_storeu_ps(to, _mm512_maskz_cvtph_ps(__mmask16(-1), _mm256_loadu_si256((const __m256i*)from)));
    }
#endif
    if (step == 1)
        for (int64_t i = 0; i < count; ++i) to[i] = T(widen(from[i]));
    else
        for (int64_t i = 0; i < count; ++i) to[i] = T(widen(from[i * step]));
}

/// Read `count` elements, `step` elements apart.
template <class T>
static void read(const char* from, Dtype dtype, int64_t step, int64_t count, T* to) {
    switch (dtype) {
        case Dtype::float32: return read_as(reinterpret_cast<const float*>(from), step, count, to);
        case Dtype::float64: return read_as(reinterpret_cast<const double*>(from), step, count, to);
        case Dtype::bfloat16: return read_as(reinterpret_cast<const BFloat16*>(from), step, count, to);
        default: return read_as(reinterpret_cast<const Float16*>(from), step, count, to);
    }
}

template <class T, class To>
static void write_as(const T* from, int64_t step, int64_t count, To* to) {
    for (int64_t i = 0; i < count; ++i) {
        if constexpr (sizeof(To) == 8)
            to[i * step] = To(from[i]);
        else
            narrow(float(from[i]), to[i * step]);
    }
}

/// Write `count` elements, `step` elements apart, rounded to nearest.
template <class T>
static void write(const T* from, int64_t count, char* to, Dtype dtype, int64_t step = 1) {
    switch (dtype) {
        case Dtype::float32: return write_as(from, step, count, reinterpret_cast<float*>(to));
        case Dtype::float64: return write_as(from, step, count, reinterpret_cast<double*>(to));
        case Dtype::bfloat16: return write_as(from, step, count, reinterpret_cast<BFloat16*>(to));
        default: return write_as(from, step, count, reinterpret_cast<Float16*>(to));
    }
}

/// Whether a row in memory is what kernels that compute in T read: elements of T, side by side.
template <class T>
FASTAV_INLINE bool is_dense(Dtype dtype, int64_t step) {
    return dtype == (sizeof(T) == 4 ? Dtype::float32 : Dtype::float64) && step == 1;
}

/// The row of `width` elements at `from`, dense and in T: the tensor's own memory where it is that already, else
/// converted into `room`.
template <class T>
static const T* dense(const char* from, Dtype dtype, int64_t step, int64_t width, T* room) {
    if (is_dense<T>(dtype, step)) return reinterpret_cast<const T*>(from);
    read(from, dtype, step, width, room);
    return room;
}

/// The sum of `term(v)` over a row's vectors v; what lies beyond the row's end counts as zeros.
template <class T, class F>
FASTAV_INLINE T sum_over(const T* row, int64_t width, const F& term) {
    // Four sums, because one addition waits for the one before it.
    Vector<T> a{}, b{}, c{}, d{};
    int64_t i = 0;
    for (; i + 4 * LANES<T> <= width; i += 4 * LANES<T>) {
        a += term(load(row + i));
        b += term(load(row + i + LANES<T>));
        c += term(load(row + i + 2 * LANES<T>));
        d += term(load(row + i + 3 * LANES<T>));
    }
    if (i + 2 * LANES<T> <= width) {
        a += term(load(row + i));
        b += term(load(row + i + LANES<T>));
        i += 2 * LANES<T>;
    }
    if (i + LANES<T> <= width) {
        c += term(load(row + i));
        i += LANES<T>;
    }
    if (i < width) {
        T last[LANES<T>] = {};
        for (int64_t k = i; k < width; ++k) last[k - i] = row[k];
        d += keep_first<T>(term(load(last)), width - i);
    }
    return sum<T>((a + b) + (c + d));
}

/// The sum of a row's products with another's.
template <class T>
FASTAV_INLINE T dot(const T* a, const T* b, int64_t width) {
    Vector<T> even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * LANES<T> <= width; i += 2 * LANES<T>) {
        even += load(a + i) * load(b + i);
        odd += load(a + i + LANES<T>) * load(b + i + LANES<T>);
    }
    T found = sum<T>(even + odd);
    for (; i < width; ++i) found += a[i] * b[i];
    return found;
}

/// The sum of a row.
template <class T>
FASTAV_INLINE T total(const T* row, int64_t width) {
    return sum_over(row, width, [](Vector<T> x) { return x; });
}

// ---- the row norm --------------------------------------------------------------------------------------------------

/// What a row is shifted and multiplied by.
template <class T>
struct Moments {
    T mean, inverse;
};

/// The mean is found from the first channel on: that of equal numbers then is exact, and they are shifted to zeros.
template <class T>
static Moments<T> moments(const T* row, int64_t width, Norm norm, T eps) {
    if (norm == Norm::none) return {T(0), T(1)};
    const T first = row[0];
    T mean = 0;
    if (norm == Norm::layer) mean = first + sum_over(row, width, [&](Vector<T> x) { return x - first; }) / T(width);
    const T squares = sum_over(row, width, [&](Vector<T> x) { return (x - mean) * (x - mean); });
    return {mean, T(1) / square_root(squares / T(width) + eps)};
}

/// A few tokens' rows in panels: channel c of token t at `data[(c / PANEL * tokens + t) * PANEL + c % PANEL]`. The last
/// panel is filled up with zeros.
template <class T>
struct Tile {
    T* data;
    int64_t tokens;  // room for so many
    T* panel(int64_t p) const { return data + p * tokens * PANEL; }
    T* row(int64_t p, int64_t t) const { return data + (p * tokens + t) * PANEL; }
};

/// Panel p of `count` rows, normalised: channel p * PANEL + c of row t at `to[t * PANEL + c]`, zeros beyond the width.
template <class T>
static void fill_panel(const T* const* rows, const Moments<T>* found, int64_t count, int64_t p, int64_t width, T* to) {
    const int64_t channels = least(PANEL, width - p * PANEL);
    for (int64_t t = 0; t < count; ++t, to += PANEL) {
        const T* const from = rows[t] + p * PANEL;
        const T mean = found[t].mean, inverse = found[t].inverse;
        if (channels == PANEL) {
            for (int64_t c = 0; c < PANEL; c += LANES<T>) store(to + c, (load(from + c) - mean) * inverse);
            continue;
        }
        int64_t c = 0;
        for (; c + LANES<T> <= channels; c += LANES<T>) store(to + c, (load(from + c) - mean) * inverse);
        for (; c < channels; ++c) to[c] = (from[c] - mean) * inverse;
        for (; c < PANEL; ++c) to[c] = T(0);
    }
}

/// The norm's gradient, see `normalize_backward` of the reference: from the gradient `d` of the normalised row `z`,
/// both token t of a tile, that of the row itself, added to what is in `out` if there is something.
template <class T>
static void norm_backward(const Tile<T>& d, const Tile<T>& z, int64_t t, int64_t width, Norm norm, T inverse, T* out,
                          bool add = false) {
    T mean = 0, along = 0;
    for (int64_t p = 0; p < panels(width) && norm != Norm::none; ++p) {
        const T *dp = d.row(p, t), *zp = z.row(p, t);
        const int64_t count = least(PANEL, width - p * PANEL);
        if (norm == Norm::layer) mean += total(dp, count);
        along += dot(dp, zp, count);
    }
    mean /= T(width);
    along /= T(width);
    for (int64_t c = 0; c < width; ++c) {
        const T found = (d.row(c / PANEL, t)[c % PANEL] - mean - z.row(c / PANEL, t)[c % PANEL] * along) * inverse;
        out[c] = add ? out[c] + found : found;
    }
}

}  // namespace FASTAV_PATH
}  // namespace fastav
