// Rows and matrices of tensors as `multiply` wants them: where they lie if they are dense, else converted.
#pragma once

#include "rows.h"

namespace fastav {
namespace FASTAV_PATH {

template <class T>
constexpr Dtype OWN = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;

/// So many elements, filled up to vectors.
template <class T>
FASTAV_INLINE int64_t filled(int64_t width) {
    return round_up(width, LANES<T>);
}

/// How far rows of so many elements lie apart in work memory: not a whole page, where a column would fall into one set
/// of the cache.
template <class T>
FASTAV_INLINE int64_t spacing(int64_t width) {
    const int64_t step = filled<T>(width);
    return step % 256 ? step : step + LANES<T>;
}

// ---- rows of tensors -----------------------------------------------------------------------------------------------

/// A tensor (count, width) or (count / inner, inner, width) as rows; strides count elements.
struct Rows {
    char* data;
    Dtype dtype;
    int64_t count, inner, width;
    int64_t sample, row, channel;

    char* at(int64_t m, int64_t c = 0) const {
        const int64_t before = m < inner ? 0 : m / inner;
        return data + (before * sample + (m - before * inner) * row + c * channel) * size_of(dtype);
    }
};

/// The rows of a tensor of two or three dimensions, all of them one distance apart if there is one.
FASTAV_INLINE Rows rows_of(const Operand& x) {
    const int d = x.dim - 2;
    Rows found{x.data, x.dtype, x.size[d], x.size[d], x.size[d + 1], 0, x.stride[d], x.stride[d + 1]};
    if (d == 0) return found;
    found.count *= x.size[0];
    found.sample = x.stride[0];
    if (x.size[1] == 1) found.row = found.sample;
    if (x.size[0] == 1 || x.size[1] == 1 || found.sample == x.size[1] * found.row) found.inner = found.count;
    return found;
}

/// Rows in memory, `step` elements apart.
template <class T>
struct Block {
    const T* data;
    int64_t step;
};

template <class T>
FASTAV_INLINE void clear(T* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) from[i] = T(0);
}

/// Channels [c, c + width) of `n` rows, in T. With `vectors` the rows end in whole vectors, which may be read.
template <class T>
static Block<T> take(const Rows& x, int64_t from, int64_t n, int64_t c, int64_t width, bool vectors, T* room) {
    if (x.dtype == OWN<T> && x.channel == 1 && x.inner == x.count && !(vectors && width % LANES<T>))
        return {reinterpret_cast<const T*>(x.at(from, c)), x.row};
    const int64_t step = spacing<T>(width);
    for (int64_t i = 0; i < n; ++i) {
        read(x.at(from + i, c), x.dtype, x.channel, width, room + i * step);
        clear(room + i * step + width, filled<T>(width) - width);
    }
    return {room, step};
}

// ---- sums over rows ------------------------------------------------------------------------------------------------

/// `sums += ` the sum of n rows, which end in whole vectors; those are added up first, so that long sums stay exact.
template <class T>
static void add_rows(const Block<T>& block, int64_t n, int64_t width, T* sums) {
    for (int64_t c = 0; c < width; c += LANES<T>) {
        Vector<T> sum{};
        for (int64_t i = 0; i < n; ++i) sum += load(block.data + i * block.step + c);
        store(sums + c, load(sums + c) + sum);
    }
}

/// Entry g of a list of vectors, filled up to whole vectors with zeros; zeros if the list was not given.
template <class T>
static void read_vector(const Operands& list, int64_t g, int64_t width, T* to) {
    clear(to, filled<T>(width));
    if (list) read(list[g].data, list[g].dtype, list[g].stride[0], width, to);
}

// ---- matrices ------------------------------------------------------------------------------------------------------

#if defined(__clang__)
#define FASTAV_SHUFFLE(I, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTAV_SHUFFLE(I, a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

/// The lanes of two vectors in turn: those of the lower halves, those of the upper ones.
template <class T>
FASTAV_INLINE void interleave(Vector<T> a, Vector<T> b, Vector<T>& low, Vector<T>& high) {
    using I = typename Kind<T>::Bits;
    if constexpr (LANES<T> == 16) {
        low = FASTAV_SHUFFLE(I, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        high = FASTAV_SHUFFLE(I, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    } else if constexpr (LANES<T> == 8) {
        low = FASTAV_SHUFFLE(I, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        high = FASTAV_SHUFFLE(I, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    } else if constexpr (LANES<T> == 4) {
        low = FASTAV_SHUFFLE(I, a, b, 0, 4, 1, 5);
        high = FASTAV_SHUFFLE(I, a, b, 2, 6, 3, 7);
    } else {
        low = FASTAV_SHUFFLE(I, a, b, 0, 2);
        high = FASTAV_SHUFFLE(I, a, b, 1, 3);
    }
}

/// A square of as many vectors as they have lanes, turned over its diagonal: each pass shuffles the lower half of the
/// rows into the upper one, which takes the position's highest bit to the lowest place.
template <class T>
FASTAV_INLINE void turn(Vector<T>* rows) {
    constexpr int N = LANES<T>;
    for (int rest = N; rest > 1; rest /= 2) {
        Vector<T> next[N];
        for (int i = 0; i < N / 2; ++i) interleave<T>(rows[i], rows[i + N / 2], next[2 * i], next[2 * i + 1]);
        for (int i = 0; i < N; ++i) rows[i] = next[i];
    }
}

/// A matrix that is read as (rows, columns), whichever way it lies.
struct Matrix {
    const char* data;
    Dtype dtype;
    int64_t rows, columns, down, along;  // strides

    const char* at(int64_t r, int64_t c) const { return data + (r * down + c * along) * size_of(dtype); }

    /// Whether a product may read its rows where they lie.
    template <class T>
    bool ready() const {
        return dtype == OWN<T> && along == 1 && columns % LANES<T> == 0;
    }
};

/// The matrix of a tensor, or that matrix turned over.
FASTAV_INLINE Matrix matrix_of(const Operand& w, bool turned) {
    const int r = turned, c = !turned;
    return {w.data, w.dtype, w.size[r], w.size[c], w.stride[r], w.stride[c]};
}

/// Rows [from, end) of the matrix into rows `step` elements apart, filled up to whole vectors with zeros.
template <class T>
static void arrange(const Matrix& x, int64_t from, int64_t end, T* to, int64_t step) {
    constexpr int64_t N = LANES<T>;
    if (x.along == 1 || x.down != 1) {
        for (int64_t r = from; r < end; ++r) {
            read(x.at(r, 0), x.dtype, x.along, x.columns, to + r * step);
            clear(to + r * step + x.columns, filled<T>(x.columns) - x.columns);
        }
        return;
    }
    for (int64_t r = from; r < end; r += N) {
        const int64_t some = least(N, end - r);
        for (int64_t c = 0; c < x.columns; c += N) {
            Vector<T> square[N];
            if (x.dtype == OWN<T> && some == N && c + N <= x.columns) {
                for (int64_t j = 0; j < N; ++j) square[j] = load(reinterpret_cast<const T*>(x.at(r, c + j)));
            } else {
                for (int64_t j = 0; j < N; ++j) {
                    T piece[N] = {};
                    if (c + j < x.columns) read(x.at(r, c + j), x.dtype, 1, some, piece);
                    square[j] = load(piece);
                }
            }
            turn<T>(square);
            T* const out = to + r * step + c;
            if (some == N)
                for (int64_t i = 0; i < N; ++i) store(out + i * step, square[i]);
            else
                for (int64_t i = 0; i < some; ++i) store(out + i * step, square[i]);
        }
    }
}

/// `out := left right`, (n, depth) by (depth, width filled up to vectors), into rows `out_step` apart.
template <class T>
static void product(int64_t n, int64_t depth, const Block<T>& left, const Block<T>& right, int64_t width, T* out,
                    int64_t out_step) {
    constexpr int64_t CUT = 256;  // long sums stay exact, and so many rows of the right matrix in the cache
    for (int64_t k = 0; k < depth; k += CUT)
        multiply<T, Left::rows>(n, divide_up(width, LANES<T>), least(CUT, depth - k), left.data + k, left.step,
                                right.data + k * right.step, right.step, out, out_step, k > 0);
}

}  // namespace FASTAV_PATH
}  // namespace fastav
