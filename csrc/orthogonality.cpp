// Orthogonality: the mean over taps and samples of `||U U^T - I||^2 / (K (K - 1))`, see fastav/ops/orthogonality.py.
//
// A work item is one sample of one tap: its K rows are brought to unit length, laid out once more with a row in each
// lane, and multiplied with themselves, a panel of columns at a time.
//
// With E = U U^T - I and f = 4 g / (K (K - 1) B L) for an upstream gradient g, backward finds E again and then
//     du = f E U    dx_i = (du_i - u_i (du_i . u_i)) / |x_i|
#include "matrix.h"
#include "work.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

/// Shorter rows are divided by this, see fastav/reference/orthogonality.py.
constexpr double SHORTEST = 1e-12;

template <class T>
class Pass {
protected:
    const Operands tokens;
    const int64_t batch, rows, lanes;  // lanes: rows filled up to vectors
    int64_t widest = 0;                // channels of a row, filled up to panels

    explicit Pass(Operands of)
        : tokens(of), batch(of[0].size[0]), rows(of[0].size[1]), lanes(filled<T>(rows)) {
        for (int64_t l = 0; l < tokens.count; ++l) widest = most(widest, wide(l));
    }

    int64_t width(int64_t l) const { return tokens[l].size[2]; }
    int64_t wide(int64_t l) const { return panels(width(l)) * PANEL; }

    struct Workspace {
        T *units, *lengths, *turned, *excess, *slopes;
    };

    /// `slopes` only for `backward`.
    Workspace cut(Cutter& cutter, bool backward) const {
        Workspace w;
        w.units = cutter.array<T>(rows * widest);
        w.lengths = cutter.array<T>(rows);
        w.turned = cutter.array<T>(widest * lanes);
        w.excess = cutter.array<T>(rows * PANEL);
        w.slopes = cutter.array<T>(backward ? PANEL * widest : 0);
        return w;
    }

    /// An item for each sample of each tap: calls `body(tap, sample, workspace)`.
    template <class F>
    void for_samples(bool backward, const F& body) const {
        Items items(tokens.count);
        for (int64_t l = 0; l < tokens.count; ++l) items.put(l, batch, wide(l));
        Cutter sizes;
        cut(sizes, backward);
        for_each(items.total(), sizes.used(), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            Cutter cutter(from);
            body(found.entry, found.item, cut(cutter, backward));
        });
    }

    /// A sample's rows at unit length, filled up with zeros, and turned; and the lengths they are divided by.
    void read_units(int64_t l, int64_t b, const Workspace& w) const {
        const Operand& x = tokens[l];
        for (int64_t k = 0; k < rows; ++k) {
            T* const unit = w.units + k * wide(l);
            read(at(x, b, k), x.dtype, x.stride[2], width(l), unit);
            const T length = square_root(dot(unit, unit, width(l)));
            w.lengths[k] = length < T(SHORTEST) ? T(SHORTEST) : length;  // NaN stays
            for (int64_t c = 0; c < width(l); ++c) unit[c] /= w.lengths[k];
            for (int64_t c = width(l); c < wide(l); ++c) unit[c] = T(0);
        }
        const char* const data = reinterpret_cast<const char*>(w.units);
        arrange(Matrix{data, OWN<T>, width(l), rows, 1, wide(l)}, 0, width(l), w.turned, lanes);
    }

    /// Columns first, ..., first + PANEL - 1 of `U U^T - I`, row k at `excess + k * PANEL`; gives how many there are.
    int64_t find_excess(int64_t l, int64_t first, const Workspace& w) const {
        const int64_t columns = least(PANEL, rows - first);
        multiply<T, Left::columns>(rows, divide_up(columns, LANES<T>), width(l), w.turned, lanes, w.turned + first,
                                   lanes, w.excess, PANEL, false);
        for (int64_t k = 0; k < columns; ++k) w.excess[(first + k) * PANEL + k] -= T(1);
        return columns;
    }
};

template <class T>
class Forward : Pass<T> {
    using Base = Pass<T>;
    using Base::tokens, Base::batch, Base::rows;

public:
    explicit Forward(Operands of) : Base(of) {}

    void run(const Operand& output) const {
        const int64_t samples = tokens.count * batch;
        const Scratch memory(samples * int64_t(sizeof(double)));
        double* const found = reinterpret_cast<double*>(memory.data());
        this->for_samples(false, [&](int64_t l, int64_t b, const typename Base::Workspace& w) {
            found[l * batch + b] = squares(l, b, w);
        });
        double total = 0;
        for (int64_t i = 0; i < samples; ++i) total += found[i];
        // A single row has nothing to be orthogonal to: 0, and NaN if it is.
        total = rows > 1 ? total / (double(rows) * double(rows - 1) * double(samples)) : 0 * total;
        write(&total, 1, output.data, output.dtype);
    }

private:
    /// `||U U^T - I||^2` of a sample.
    double squares(int64_t l, int64_t b, const typename Base::Workspace& w) const {
        this->read_units(l, b, w);
        double total = 0;
        for (int64_t first = 0; first < rows; first += PANEL) {
            const int64_t columns = this->find_excess(l, first, w);
            for (int64_t k = 0; k < rows; ++k) {
                const T* const row = w.excess + k * PANEL;
                total += double(dot(row, row, columns));
            }
        }
        return total;
    }
};

template <class T>
class Backward : Pass<T> {
    using Base = Pass<T>;
    using Base::tokens, Base::batch, Base::rows;
    const Operands wanted;
    T factor;

public:
    Backward(Operands of, const Operand& upstream, Operands gradients) : Base(of), wanted(gradients) {
        double g;
        read(upstream.data, upstream.dtype, 1, 1, &g);
        const double pairs = double(rows) * double(rows - 1);
        factor = T(4 * g / ((pairs > 1 ? pairs : 1) * double(batch) * double(tokens.count)));
    }

    void run() const {
        if (!wanted) return;
        this->for_samples(true, [&](int64_t l, int64_t b, const typename Base::Workspace& w) { run_item(l, b, w); });
    }

private:
    void run_item(int64_t l, int64_t b, const typename Base::Workspace& w) const {
        const int64_t width = this->width(l), wide = this->wide(l);
        this->read_units(l, b, w);
        for (int64_t first = 0; first < rows; first += PANEL) {
            const int64_t columns = this->find_excess(l, first, w);
            // The excess is symmetric: its columns are its rows.
            multiply<T, Left::columns>(columns, divide_up(width, LANES<T>), rows, w.excess, PANEL, w.units, wide,
                                       w.slopes, wide, false);
            for (int64_t k = 0; k < columns; ++k) {
                T* const slope = w.slopes + k * wide;
                into_row(slope, w.units + (first + k) * wide, w.lengths[first + k], width);
                write(slope, width, at(wanted[l], b, first + k), wanted[l].dtype);
            }
        }
    }

    /// From `E U` of a row to the gradient of the row itself, in place.
    void into_row(T* slope, const T* unit, T length, int64_t width) const {
        for (int64_t c = 0; c < width; ++c) slope[c] *= factor;
        // The length of a row that is divided by another number has no part in it.
        const T along = length > T(SHORTEST) ? dot(slope, unit, width) : T(0);
        const T any = T(rows > 1);
        for (int64_t c = 0; c < width; ++c) slope[c] = (slope[c] - unit[c] * along) / length * any;
    }
};

}  // namespace

void orthogonality_forward(const Orthogonality& call, Operands outputs) {
    if (call.tokens[0].dtype == Dtype::float64)
        Forward<double>(call.tokens).run(outputs[0]);
    else
        Forward<float>(call.tokens).run(outputs[0]);
}

void orthogonality_backward(const Orthogonality& call, Operands grads, const OrthogonalityGradients& wanted) {
    if (call.tokens[0].dtype == Dtype::float64)
        Backward<double>(call.tokens, grads[0], wanted.tokens).run();
    else
        Backward<float>(call.tokens, grads[0], wanted.tokens).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
