// The one matrix product behind all five ops, on work buffers in float or double.
#pragma once

#include "vector.h"

namespace fastav {
namespace FASTAV_PATH {

/// Channels of one panel: what a normalised row is cut into, so that the rows of a panel lie a constant apart.
constexpr int PANEL = 64;

/// How the left matrix lies: element (i, k) at `i * PANEL + k`, at `i * step + k`, or at `i + k * step`.
enum class Left { panel, rows, columns };

/// `out (+)= left right`: (rows, depth) by (depth, vectors * LANES) into rows `out_step` apart.
///
/// Sums run over k in order, from zero; with `add` the sum is then added to what is there. Row k of the right matrix
/// begins at `right + k * right_step`; `step` is not read for Left::panel.
template <class T, Left LEFT>
void multiply(int64_t rows, int64_t vectors, int64_t depth, const T* left, int64_t step, const T* right,
              int64_t right_step, T* out, int64_t out_step, bool add);

}  // namespace FASTAV_PATH
}  // namespace fastav
