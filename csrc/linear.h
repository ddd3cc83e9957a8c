// A linear map of rows, `y = z W` with z the normalised rows, and its gradients: what project and fuse share.
//
// Rows that are not dense, or have a norm, go through the thread's workspace, a block at a time; matrices that are not
// dense, or are wanted transposed, are laid out once, before everything else. Gradients of W are cut over its rows, not
// over the tokens, so that nothing has to be added up between threads.
#pragma once

#include "matrix.h"
#include "work.h"

namespace fastav {
namespace FASTAV_PATH {

/// Rows of an item, where the matrix is large and where it is not; a matrix is large beyond so many elements.
constexpr int64_t ROWS = 48, DEEP = 96, LARGE = 1 << 18;

/// Rows of W that an item for its gradient covers.
constexpr int64_t STRIP = 128;

// ---- normalised rows -----------------------------------------------------------------------------------------------

template <class T>
static void normalise(const T* row, int64_t width, const Moments<T>& m, T* to) {
    const Vector<T> shift = splat(m.mean);
    int64_t c = 0;
    for (; c + LANES<T> <= width; c += LANES<T>) store(to + c, (load(row + c) - shift) * m.inverse);
    for (; c < width; ++c) to[c] = (row[c] - m.mean) * m.inverse;
}

/// `n` normalised rows; `kept` gets what each was shifted and multiplied by.
template <class T>
static Block<T> normalised(const Rows& x, int64_t from, int64_t n, Norm norm, T eps, T* room, Moments<T>* kept) {
    if (norm == Norm::none) return take(x, from, n, 0, x.width, false, room);
    const int64_t step = spacing<T>(x.width);
    for (int64_t i = 0; i < n; ++i) {
        T* const to = room + i * step;
        const T* const row = dense(x.at(from + i), x.dtype, x.channel, x.width, to);
        const Moments<T> found = moments(row, x.width, norm, eps);
        normalise(row, x.width, found, to);
        if (kept) kept[i] = found;
    }
    return {room, step};
}

/// Channels [c, c + width) of the same, from what was kept; without norm that is not read.
template <class T>
static Block<T> normalised_strip(const Rows& x, int64_t from, int64_t n, int64_t c, int64_t width, Norm norm,
                                 const Moments<T>* kept, T* room) {
    if (norm == Norm::none) return take(x, from, n, c, width, false, room);
    const int64_t step = spacing<T>(width);
    for (int64_t i = 0; i < n; ++i) {
        T* const to = room + i * step;
        normalise(dense(x.at(from + i, c), x.dtype, x.channel, width, to), width, kept[i], to);
    }
    return {room, step};
}

/// The norm's gradient times `factor`, see `normalize_backward` of the reference: `d`, the gradient of the normalised
/// row `z`, becomes that of the row itself.
template <class T>
static void norm_gradient(T* d, const T* z, int64_t width, Norm norm, T inverse, T factor) {
    T mean = 0, along = 0;
    if (norm == Norm::layer) mean = total(d, width) / T(width);
    if (norm != Norm::none) along = dot(d, z, width) / T(width);
    inverse *= factor;
    if (norm == Norm::none)
        for (int64_t c = 0; c < width; ++c) d[c] *= inverse;
    else
        for (int64_t c = 0; c < width; ++c) d[c] = (d[c] - mean - z[c] * along) * inverse;
}

// ---- the layers of a call ------------------------------------------------------------------------------------------

/// One entry of a call.
template <class T>
struct Layer {
    Rows tokens;
    int64_t in, out;
    int64_t block;         // rows of an item
    Block<T> map, turned;  // W and W transposed, if they were asked for; see `turned_here`
    Moments<T>* moments;   // of all rows, likewise, unless there is no norm
    T* upstream;           // gradients of y, where a call keeps them
};

template <class T>
class Layers {
public:
    const int64_t count;
    const Norm norm;
    const T eps;
    int64_t in = 0, out = 0;            // the widest
    int64_t room_in = 0, room_out = 0;  // elements of work memory for an item's rows

    Layers(const Operands& tokens, const Operands& weights, Norm by, double small)
        : count(tokens.count), norm(by), eps(T(small)), weights_(weights), plan_(count * int64_t(sizeof(Layer<T>))) {
        for (int64_t g = 0; g < count; ++g) {
            Layer<T>& layer = all()[g] = {};
            layer.tokens = rows_of(tokens[g]);
            layer.in = weights[g].size[0], layer.out = weights[g].size[1];
            layer.block = layer.in * layer.out <= LARGE ? DEEP : ROWS;
            in = most(in, layer.in), out = most(out, layer.out);
            room_in = most(room_in, room(layer.block, layer.in));
            room_out = most(room_out, room(layer.block, layer.out));
        }
    }

    Layer<T>& operator[](int64_t g) const { return all()[g]; }

    /// Make what a pass wants ready: W, W transposed, room for the rows' moments and for the gradients of y.
    Scratch prepare(bool map, bool turned, bool moments, bool upstream) const {
        Cutter sizes;
        cut(sizes, map, turned, moments, upstream);
        Scratch memory(sizes.used());
        Cutter arrays(memory.data());
        cut(arrays, map, turned, moments, upstream);
        arrange_all(map, turned);
        return memory;
    }

    /// An item for every block of rows of every layer.
    Items row_items() const {
        Items items(count);
        for (int64_t g = 0; g < count; ++g) {
            const Layer<T>& layer = all()[g];
            const int64_t rows = layer.tokens.count;
            items.put(g, divide_up(rows, layer.block), least(rows, layer.block) * layer.in * layer.out);
        }
        return items;
    }

    /// Elements of work memory for `rows` of these rows.
    static int64_t room(int64_t rows, int64_t width) { return rows * spacing<T>(width); }

    /// Normalised rows, their moments kept if there is room for them.
    Block<T> rows(const Layer<T>& layer, int64_t from, int64_t n, T* room) const {
        return normalised(layer.tokens, from, n, norm, eps, room, layer.moments ? layer.moments + from : nullptr);
    }

    /// `y := z W` into rows `step` apart.
    void map(const Layer<T>& layer, int64_t n, const Block<T>& z, T* y, int64_t step) const {
        product(n, layer.in, z, layer.map, layer.out, y, step);
    }

    /// Elements of work memory for a transposed matrix: where all rows are one item, that item makes it for itself and
    /// has it in the cache, and no memory is asked for that other matrices' would fill too.
    int64_t room_turned() const {
        int64_t found = 0;
        for (int64_t g = 0; g < count; ++g)
            if (turned_here(g)) found = most(found, room(all()[g].out, all()[g].in));
        return found;
    }

    /// Gradients of n rows of layer g's tokens, written into `to`: from that of y times `factor`.
    void token_gradients(int64_t g, int64_t from, int64_t n, const Block<T>& z, const Block<T>& upstream, T factor,
                         const Operand& to, T* room, T* room_turned) const {
        const Layer<T>& layer = all()[g];
        Block<T> turned = layer.turned;
        if (turned_here(g)) {
            turned = {room_turned, spacing<T>(layer.in)};
            arrange(matrix_of(weights_[g], true), 0, layer.out, room_turned, turned.step);
        }
        const Rows target = rows_of(to);
        const bool direct = to.dtype == OWN<T> && layer.in % LANES<T> == 0;
        T* const d = direct ? reinterpret_cast<T*>(target.at(from)) : room;
        const int64_t step = direct ? layer.in : spacing<T>(layer.in);
        product(n, layer.out, upstream, turned, layer.in, d, step);
        for (int64_t i = 0; i < n; ++i) {
            T* const row = d + i * step;
            if (norm != Norm::none)
                norm_gradient(row, z.data + i * z.step, layer.in, norm, layer.moments[from + i].inverse, factor);
            else if (factor != T(1))
                norm_gradient(row, row, layer.in, norm, T(1), factor);
            if (!direct) write(row, layer.in, target.at(from + i), to.dtype);
        }
    }

    /// `out := z^T d` for channels [c, c + width) of z, into rows `step` apart. `upstream(from, n, z)` gives n rows of
    /// d; without `out` it is only called, and without `room` there is no z either.
    template <class F>
    void weight_gradients(const Layer<T>& layer, int64_t c, int64_t width, T* room, T* out, int64_t step,
                          const F& upstream) const {
        const int64_t end = layer.tokens.count;
        for (int64_t from = 0; from < end; from += DEEP) {
            const int64_t n = least(DEEP, end - from);
            const Moments<T>* const kept = layer.moments ? layer.moments + from : nullptr;
            const Block<T> z =
                room ? normalised_strip(layer.tokens, from, n, c, width, norm, kept, room) : Block<T>{nullptr, 0};
            const Block<T> d = upstream(from, n, z);
            if (out)
                multiply<T, Left::columns>(width, divide_up(layer.out, LANES<T>), n, z.data, z.step, d.data, d.step,
                                           out, step, from > 0);
        }
        for (int64_t i = 0; end == 0 && out && i < width; ++i) clear(out + i * step, filled<T>(layer.out));
    }

private:
    Layer<T>* all() const { return reinterpret_cast<Layer<T>*>(plan_.data()); }

    void cut(Cutter& cutter, bool map, bool turned, bool moments, bool upstream) const {
        for (int64_t g = 0; g < count; ++g) {
            Layer<T>& layer = all()[g];
            if (map) layer.map = place(cutter, g, false);
            if (turned && !turned_here(g)) layer.turned = place(cutter, g, true);
            const int64_t rows = layer.tokens.count;
            if (moments && norm != Norm::none) layer.moments = cutter.array<Moments<T>>(rows);
            if (upstream) layer.upstream = cutter.array<T>(rows * spacing<T>(layer.out));
        }
    }

    /// Whether W is transposed by the one item that wants it.
    bool turned_here(int64_t g) const {
        return all()[g].tokens.count <= all()[g].block && !matrix_of(weights_[g], true).template ready<T>();
    }

    /// Where a matrix is to be read.
    Block<T> place(Cutter& cutter, int64_t g, bool turned) const {
        const Matrix w = matrix_of(weights_[g], turned);
        if (w.template ready<T>()) return {reinterpret_cast<const T*>(w.data), w.down};
        const int64_t step = spacing<T>(w.columns);
        return {cutter.array<T>(w.rows * step), step};
    }

    void arrange_all(bool map, bool turned) const {
        constexpr int64_t CUT = 256;
        Items items(2 * count);
        for (int64_t i = 0; i < 2 * count; ++i) {
            const Matrix w = matrix_of(weights_[i / 2], i % 2);
            const bool wanted = (i % 2 ? turned && !turned_here(i / 2) : map) && !w.template ready<T>();
            items.put(i, wanted ? divide_up(w.rows, CUT) : 0, w.columns * least(CUT, w.rows));
        }
        for_each(items.total(), 0, [&](int64_t item, char*) {
            const auto found = items.find(item);
            const Layer<T>& layer = all()[found.entry / 2];
            const Block<T>& to = found.entry % 2 ? layer.turned : layer.map;
            const Matrix w = matrix_of(weights_[found.entry / 2], found.entry % 2);
            arrange(w, found.item * CUT, least(w.rows, (found.item + 1) * CUT), const_cast<T*>(to.data), to.step);
        });
    }

    const Operands weights_;
    Scratch plan_;
};

}  // namespace FASTAV_PATH
}  // namespace fastav
