// The register tile of `multiply`: for each k one row of the right matrix is held in V vectors, and each of R elements
// of the left matrix is spread over a vector and multiplied with it. R V sums stay in registers.
#include "multiply.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

/// Vectors of the right matrix a tile holds: as many as leave room for enough rows.
constexpr int WIDEST = REGISTERS == 32 ? 4 : 2;

/// Rows of a tile of V vectors: sums, one row of the right matrix and one element of the left fit the registers. With a
/// single vector every row costs a load beside its multiplication, and more rows than this gain nothing; nor do more
/// than eight that lie any distance apart, each of which wants an address of its own.
template <Left LEFT>
constexpr int tile_rows(int v) {
    return REGISTERS == 32 ? (v == 1 ? (LEFT == Left::rows ? 8 : 16) : v == 2 ? 12 : v == 3 ? 8 : 6) : (v == 1 ? 8 : 6);
}

template <class T, Left LEFT, int R, int V>
FASTAV_INLINE void tile(int64_t depth, const T* left, int64_t step, const T* right, int64_t right_step, T* out,
                        int64_t out_step, bool add) {
    Vector<T> sums[R][V];
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < V; ++j) sums[i][j] = Vector<T>{};
    for (int64_t k = 0; k < depth; ++k) {
        Vector<T> row[V];
        for (int j = 0; j < V; ++j) row[j] = load(right + j * LANES<T>);
        for (int i = 0; i < R; ++i) {
            const T element = left[i * (LEFT == Left::panel ? PANEL : LEFT == Left::rows ? step : 1)];
            for (int j = 0; j < V; ++j) sums[i][j] += element * row[j];
        }
        left += LEFT == Left::columns ? step : 1;
        right += right_step;
    }
    for (int i = 0; i < R; ++i) {
        for (int j = 0; j < V; ++j) {
            T* to = out + i * out_step + j * LANES<T>;
            store(to, add ? load(to) + sums[i][j] : sums[i][j]);
        }
    }
}

/// The last `rows` < R rows: a tile of exactly that height.
template <class T, Left LEFT, int R, int V>
FASTAV_INLINE void rest(int64_t rows, int64_t depth, const T* left, int64_t step, const T* right, int64_t right_step,
                        T* out, int64_t out_step, bool add) {
    if constexpr (R > 1) {
        if (rows == R - 1)
            tile<T, LEFT, R - 1, V>(depth, left, step, right, right_step, out, out_step, add);
        else
            rest<T, LEFT, R - 1, V>(rows, depth, left, step, right, right_step, out, out_step, add);
    }
}

template <class T, Left LEFT, int V>
void columns(int64_t rows, int64_t depth, const T* left, int64_t step, const T* right, int64_t right_step, T* out,
             int64_t out_step, bool add) {
    constexpr int R = tile_rows<LEFT>(V);
    const int64_t down = LEFT == Left::panel ? PANEL : LEFT == Left::rows ? step : 1;
    int64_t i = 0;
    for (; i + R <= rows; i += R)
        tile<T, LEFT, R, V>(depth, left + i * down, step, right, right_step, out + i * out_step, out_step, add);
    rest<T, LEFT, R, V>(rows - i, depth, left + i * down, step, right, right_step, out + i * out_step, out_step, add);
}

}  // namespace

template <class T, Left LEFT>
void multiply(int64_t rows, int64_t vectors, int64_t depth, const T* left, int64_t step, const T* right,
              int64_t right_step, T* out, int64_t out_step, bool add) {
    constexpr int64_t wide = WIDEST * LANES<T>;
    for (; vectors >= WIDEST; vectors -= WIDEST, right += wide, out += wide)
        columns<T, LEFT, WIDEST>(rows, depth, left, step, right, right_step, out, out_step, add);
    if (WIDEST == 4 && vectors == 3)
        columns<T, LEFT, 3>(rows, depth, left, step, right, right_step, out, out_step, add);
    if (WIDEST == 4 && vectors == 2)
        columns<T, LEFT, 2>(rows, depth, left, step, right, right_step, out, out_step, add);
    if (vectors == 1) columns<T, LEFT, 1>(rows, depth, left, step, right, right_step, out, out_step, add);
}

#define INSTANTIATE(T, LEFT)                                                                                          \
    template void multiply<T, LEFT>(int64_t, int64_t, int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t,     \
                                    bool);
INSTANTIATE(float, Left::panel)
INSTANTIATE(float, Left::rows)
INSTANTIATE(float, Left::columns)
INSTANTIATE(double, Left::panel)
INSTANTIATE(double, Left::rows)
INSTANTIATE(double, Left::columns)

}  // namespace FASTAV_PATH
}  // namespace fastav
