// Rows of tensors: read from any dtype and stride, normalised into panels, written back.
#pragma once

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
    // The exponent is moved from bias 15 to 127. Infinities and NaN go on to the largest exponent; subnormal numbers get
    // the smallest one's leading bit, which the subtraction takes off again.
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

// ---- reading and writing -------------------------------------------------------------------------------------------

template <class T, class From>
static void read_as(const From* from, int64_t step, int64_t count, T* to) {
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

/// The row of `width` elements at `from`, dense and in T: the tensor's own memory where it is that already, else
/// converted into `room`.
template <class T>
static const T* dense(const char* from, Dtype dtype, int64_t step, int64_t width, T* room) {
    constexpr Dtype own = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
    if (dtype == own && step == 1) return reinterpret_cast<const T*>(from);
    read(from, dtype, step, width, room);
    return room;
}

/// For each of G rows the sum of `term(v, g)` over its vectors v; what lies beyond a row's end counts as zeros.
template <class T, int G, class F>
FASTAV_INLINE void sums_over(const T* const* rows, int64_t width, const F& term, T* found) {
    // Two sums a row, because one addition waits for the one before it.
    Vector<T> even[G], odd[G];
    for (int g = 0; g < G; ++g) even[g] = odd[g] = Vector<T>{};
    int64_t i = 0;
    for (; i + 2 * LANES<T> <= width; i += 2 * LANES<T>) {
        for (int g = 0; g < G; ++g) {
            even[g] += term(load(rows[g] + i), g);
            odd[g] += term(load(rows[g] + i + LANES<T>), g);
        }
    }
    if (i + LANES<T> <= width) {
        for (int g = 0; g < G; ++g) even[g] += term(load(rows[g] + i), g);
        i += LANES<T>;
    }
    if (i < width) {
        for (int g = 0; g < G; ++g) {
            T last[LANES<T>] = {};
            for (int64_t k = i; k < width; ++k) last[k - i] = rows[g][k];
            odd[g] += keep_first<T>(term(load(last), g), width - i);
        }
    }
    for (int g = 0; g < G; ++g) found[g] = sum<T>(even[g] + odd[g]);
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
    T found;
    sums_over<T, 1>(&row, width, [](Vector<T> x, int) { return x; }, &found);
    return found;
}

// ---- the row norm --------------------------------------------------------------------------------------------------

/// What a row is shifted and multiplied by.
template <class T>
struct Moments {
    T mean, inverse;
};

/// Rows whose moments are found together: their sums do not wait for each other, which on short rows is most of the
/// time. Each row's own order of additions is the same in any company.
constexpr int TOGETHER = 4;

template <class T, int G>
FASTAV_INLINE void moments(const T* const* rows, int64_t width, Norm norm, T eps, Moments<T>* found) {
    for (int g = 0; g < G; ++g) found[g] = {T(0), T(1)};
    if (norm == Norm::none) return;
    if (norm == Norm::layer) {
        T means[G];
        sums_over<T, G>(rows, width, [](Vector<T> x, int) { return x; }, means);
        for (int g = 0; g < G; ++g) found[g].mean = means[g] / T(width);
    }
    T squares[G];
    const auto square = [&](Vector<T> x, int g) { return (x - found[g].mean) * (x - found[g].mean); };
    sums_over<T, G>(rows, width, square, squares);
    for (int g = 0; g < G; ++g) found[g].inverse = T(1) / square_root(squares[g] / T(width) + eps);
}

/// A few tokens' rows in panels: channel c of token t at `data[(c / PANEL * tokens + t) * PANEL + c % PANEL]`. The last
/// panel is filled up with zeros.
template <class T>
struct Tile {
    T* data;
    int64_t tokens;  // room for so many
    T* panel(int64_t p) const { return data + p * tokens * PANEL; }
    T* row(int64_t p, int64_t t) const { return data + (p * tokens + t) * PANEL; }
    static int64_t bytes(int64_t tokens, int64_t width) { return tokens * panels(width) * PANEL * int64_t(sizeof(T)); }
};

/// Tokens t, t + 1, ... of a tile := the normalised rows.
template <class T, int G>
static void fill_rows(const Tile<T>& tile, int64_t t, const T* const* rows, int64_t width, Norm norm, T eps,
                      Moments<T>* found) {
    moments<T, G>(rows, width, norm, eps, found);
    for (int g = 0; g < G; ++g) {
        const T* from = rows[g];
        const T mean = found[g].mean, inverse = found[g].inverse;
        for (int64_t p = 0; p < panels(width); ++p, from += PANEL) {
            T* const to = tile.row(p, t + g);
            const int64_t count = least(PANEL, width - p * PANEL);
            int64_t c = 0;
            for (; c + LANES<T> <= count; c += LANES<T>) store(to + c, (load(from + c) - mean) * inverse);
            for (; c < count; ++c) to[c] = (from[c] - mean) * inverse;
            for (; c < PANEL; ++c) to[c] = T(0);
        }
    }
}

/// Token t of a tile := the normalised row.
template <class T>
static Moments<T> fill(const Tile<T>& tile, int64_t t, const T* row, int64_t width, Norm norm, T eps) {
    Moments<T> found;
    fill_rows<T, 1>(tile, t, &row, width, norm, eps, &found);
    return found;
}

/// The norm's gradient, see `normalize_backward` of the reference: from the gradient `d` of the normalised row `z`, both
/// token t of a tile, that of the row itself, added to what is in `out` if there is something.
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
