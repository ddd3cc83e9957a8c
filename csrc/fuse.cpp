// Fuse: `sum_l alpha_l y_l` with `y_l = norm(tokens_l) W_l + b_l` and weights alpha over the layers, see
// fastav/ops/fuse.py.
//
// Forward is one item for a block of rows, all layers one after the other; where each token has weights of its own, by
// a running softmax, so that no y_l is kept. With g the upstream gradient, u = gate / sqrt(W) and s_l = y_l . u,
// backward takes
//     mean, gate on layers:  dy_l = alpha_l g            dgate_l = alpha_l (a_l - sum_k alpha_k a_k)
//     gate on tokens:        dy_l = alpha_l g + ds_l u   ds_l = alpha_l (y_l . g - sum_k alpha_k y_k . g)
// where a_l = <W_l, z_l^T g> + b_l . sum g needs no y. A gate on tokens has its alpha and ds found first, and
//     dgate = sum_l ds_l y_l / sqrt(W) = sum_l ((ds_l^T z_l) W_l + sum(ds_l) b_l) / sqrt(W).
#include "linear.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

/// e^x for x <= 0.
template <class T>
T power(T x) {
    return exp<T>(splat(x))[0];
}

/// `x := softmax(x)`.
template <class T>
void soften(T* x, int64_t count, int64_t step = 1) {
    T top = x[0], total = 0;
    for (int64_t i = 1; i < count; ++i) top = x[i * step] > top ? x[i * step] : top;
    for (int64_t i = 0; i < count; ++i) total += x[i * step] = power(x[i * step] - top);
    for (int64_t i = 0; i < count; ++i) x[i * step] /= total;
}

/// What both passes share: the layers, the gate, and the rows of y.
template <class T>
class Pass {
protected:
    const Fuse& call;
    const Layers<T> layers;
    const int64_t count, width, rows;  // rows: of one layer, B K
    const Scratch gate_memory;
    T* const gate;  // L weights, or W elements of u, filled up to vectors

    explicit Pass(const Fuse& of)
        : call(of),
          layers(of.tokens, of.weights, of.norm, of.eps),
          count(of.tokens.count),
          width(layers.out),
          rows(layers[0].tokens.count),
          gate_memory((filled<T>(count) + filled<T>(width)) * int64_t(sizeof(T))),
          gate(reinterpret_cast<T*>(gate_memory.data())) {
        if (call.kind == Gate::token) {
            read_vector(call.gate, 0, width, gate);
            for (int64_t c = 0; c < width; ++c) gate[c] *= root();
        } else if (call.kind == Gate::layer) {
            read_vector(call.gate, 0, count, gate);
            soften(gate, count);
        } else {
            for (int64_t l = 0; l < count; ++l) gate[l] = T(1) / T(count);
        }
    }

    bool by_token() const { return call.kind == Gate::token; }
    T root() const { return T(1) / square_root(T(width)); }

    /// Rows of an item that goes through all layers: fewer where rows are few, for the sake of other threads.
    int64_t block() const { return rows < 8 * ROWS ? ROWS / 2 : ROWS; }
    int64_t blocks() const { return divide_up(rows, block()); }

    /// `y := ` n rows of layer l's y.
    void map(int64_t l, int64_t from, int64_t n, T* z, T* y, T* bias) const {
        const Layer<T>& layer = layers[l];
        const int64_t step = spacing<T>(width);
        layers.map(layer, n, layers.rows(layer, from, n, z), y, step);
        if (!call.biases) return;
        read_vector(call.biases, l, width, bias);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t c = 0; c < width; c += LANES<T>)
                store(y + i * step + c, load(y + i * step + c) + load(bias + c));
    }
};

// ---- forward -------------------------------------------------------------------------------------------------------

template <class T>
class Forward : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::count, Base::layers, Base::gate, Base::width, Base::rows, Base::by_token;
    const Operands outputs, sums;

    struct Workspace {
        T *z, *y, *bias, *mixed, *top, *total;
    };

    Workspace cut(Cutter& cutter) const {
        Workspace w;
        w.z = cutter.array<T>(layers.room(this->block(), layers.in));
        w.y = cutter.array<T>(layers.room(this->block(), width));
        w.bias = cutter.array<T>(filled<T>(width));
        w.mixed = cutter.array<T>(layers.room(this->block(), width));
        w.top = cutter.array<T>(this->block());
        w.total = cutter.array<T>(this->block());
        return w;
    }

public:
    Forward(const Fuse& of, Operands out, Operands kept) : Base(of), outputs(out), sums(kept) {}

    void run() const {
        const Scratch memory = layers.prepare(true, false, false, false);
        Cutter workspace;
        cut(workspace);
        for_each(this->blocks(), workspace.used(),
                 [&](int64_t item, char* from) { run_item(item * this->block(), from); });
    }

private:
    void run_item(int64_t from, char* memory) const {
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t n = least(this->block(), rows - from), step = spacing<T>(width);
        clear(w.mixed, n * step);
        for (int64_t i = 0; i < n; ++i) w.top[i] = -T(__builtin_inf()), w.total[i] = 0;
        for (int64_t l = 0; l < count; ++l) {
            this->map(l, from, n, w.z, w.y, w.bias);
            for (int64_t i = 0; i < n; ++i) {
                T *const y = w.y + i * step, *const mixed = w.mixed + i * step;
                if (by_token())
                    advance(y, w.top[i], w.total[i], mixed);
                else
                    add(y, T(1), gate[l], mixed);
            }
        }
        const Rows to = rows_of(outputs[0]);
        for (int64_t i = 0; i < n; ++i) {
            T* const mixed = w.mixed + i * step;
            if (by_token()) {
                const T inverse = T(1) / w.total[i];
                for (int64_t c = 0; c < width; c += LANES<T>) store(mixed + c, load(mixed + c) * inverse);
                const T sum = w.top[i] + T(__builtin_log(double(w.total[i])));
                write(&sum, 1, sums[0].data + (from + i) * size_of(sums[0].dtype), sums[0].dtype);
            }
            write(mixed, width, to.at(from + i), to.dtype);
        }
    }

    /// `mixed := before mixed + alpha y`.
    void add(const T* y, T before, T alpha, T* mixed) const {
        for (int64_t c = 0; c < width; c += LANES<T>)
            store(mixed + c, before * load(mixed + c) + alpha * load(y + c));
    }

    /// One more layer of a token's running softmax: the largest logit and the sum of powers so far.
    void advance(const T* y, T& top, T& sum, T* mixed) const {
        const T logit = dot(y, gate, width);
        const T before = top;
        top = logit > top ? logit : top;
        // A logit of -inf weighs nothing, also where all so far are.
        const T alpha = logit == -T(__builtin_inf()) ? T(0) : power(logit - top), rest = sum == T(0) ? T(0) : power(before - top);
        sum = sum * rest + alpha;
        add(y, rest, alpha, mixed);
    }
};

// ---- backward ------------------------------------------------------------------------------------------------------

template <class T>
class Backward : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::count, Base::layers, Base::gate, Base::width, Base::rows, Base::by_token, Base::root;
    const FuseGradients& wanted;
    const Rows grad;
    const int64_t strips;  // of the widest W
    T *alphas = nullptr, *slopes = nullptr;  // alpha and ds of every token, (L, rows)
    T* parts = nullptr;                      // what each strip of each layer adds to the gate's gradient

    /// Elements of a part: one number a layer, or a row of W.
    int64_t part() const { return by_token() ? filled<T>(width) : 1; }

    struct Workspace {
        T *z, *y, *d, *turned, *bias, *sums, *along;
    };

    Workspace cut(Cutter& cutter) const {
        Workspace w;
        w.z = cutter.array<T>(most(layers.room_in, layers.room(DEEP, STRIP)));
        w.y = cutter.array<T>(layers.room(DEEP, width));
        w.d = cutter.array<T>(most(most(layers.room_in, layers.room_out), layers.room(STRIP, width)));
        w.turned = cutter.array<T>(wanted.tokens ? layers.room_turned() : 0);
        w.bias = cutter.array<T>(filled<T>(width));
        w.sums = cutter.array<T>(filled<T>(width));
        w.along = cutter.array<T>(STRIP);
        return w;
    }

public:
    Backward(const Fuse& of, Operands upstream, const FuseGradients& gradients)
        : Base(of),
          wanted(gradients),
          grad(rows_of(upstream[0])),
          strips(divide_up(layers.in, STRIP)) {}

    void run() {
        const bool moments = wanted.tokens || wanted.weights || wanted.gate;
        const Scratch memory = layers.prepare(by_token() || wanted.gate, bool(wanted.tokens), moments, false);
        Cutter sizes;
        place(sizes);
        const Scratch own(sizes.used());
        Cutter arrays(own.data());
        place(arrays);
        Cutter workspace;
        cut(workspace);
        const Items blocks = layers.row_items();
        if (by_token()) {
            for_each(blocks.total(), workspace.used(), [&](int64_t item, char* from) {
                const auto found = blocks.find(item);
                measure(found.entry, found.item * layers[found.entry].block, from);
            });
            for_each(divide_up(rows, DEEP), 0, [&](int64_t item, char*) {
                for (int64_t m = item * DEEP; m < least(rows, (item + 1) * DEEP); ++m) weigh(m);
            });
        }
        if (wanted.tokens || (moments && call.norm != Norm::none)) {
            for_each(blocks.total(), workspace.used(), [&](int64_t item, char* from) {
                const auto found = blocks.find(item);
                run_rows(found.entry, found.item * layers[found.entry].block, from);
            });
        }
        Items items(count);
        for (int64_t l = 0; l < count; ++l) {
            const int64_t all = divide_up(layers[l].in, STRIP);
            items.put(l, wanted.weights || wanted.gate ? all : wanted.biases ? 1 : 0, least(STRIP, layers[l].in));
        }
        for_each(items.total(), workspace.used(), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            run_strip(found.entry, found.item, from);
        });
        if (wanted.gate) write_gate();
    }

private:
    void place(Cutter& cutter) {
        alphas = cutter.array<T>(by_token() ? count * rows : 0);
        slopes = cutter.array<T>(by_token() ? count * rows : 0);
        parts = cutter.array<T>(wanted.gate ? count * strips * part() : 0);
    }

    /// A gate on tokens: s and y . g of n tokens in layer l.
    void measure(int64_t l, int64_t from, char* memory) const {
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t n = least(layers[l].block, rows - from), step = spacing<T>(width);
        const Block<T> g = take(grad, from, n, 0, width, true, w.d);
        this->map(l, from, n, w.z, w.y, w.bias);
        for (int64_t i = 0; i < n; ++i) {
            alphas[l * rows + from + i] = dot(w.y + i * step, gate, width);
            slopes[l * rows + from + i] = dot(w.y + i * step, g.data + i * g.step, width);
        }
    }

    /// From those of all layers to a token's alpha and ds.
    void weigh(int64_t m) const {
        soften(alphas + m, count, rows);
        T mean = 0;
        for (int64_t i = m; i < count * rows; i += rows) mean += alphas[i] * slopes[i];
        for (int64_t i = m; i < count * rows; i += rows) slopes[i] = alphas[i] * (slopes[i] - mean);
    }

    /// Gradients of n rows of layer l's y over `factor(l)`, whose last vectors may be read whole.
    Block<T> upstream(int64_t l, int64_t from, int64_t n, T* room) const {
        Block<T> g = take(grad, from, n, 0, width, true, room);
        if (!by_token()) return g;
        const int64_t step = spacing<T>(width);
        for (int64_t i = 0; i < n; ++i) {
            const T alpha = alphas[l * rows + from + i], ds = slopes[l * rows + from + i];
            for (int64_t c = 0; c < width; c += LANES<T>)
                store(room + i * step + c, alpha * load(g.data + i * g.step + c) + ds * load(gate + c));
        }
        return {room, step};
    }

    T factor(int64_t l) const { return by_token() ? T(1) : gate[l]; }

    void run_rows(int64_t l, int64_t from, char* memory) const {
        const Layer<T>& layer = layers[l];
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t n = least(layer.block, rows - from);
        Block<T> z{};
        if (call.norm != Norm::none) z = layers.rows(layer, from, n, w.z);
        if (wanted.tokens)
            layers.token_gradients(l, from, n, z, upstream(l, from, n, w.y), factor(l), wanted.tokens[l], w.d,
                                   w.turned);
    }

    /// Rows [c, c + STRIP) of W: its gradient, and what it adds to the gate's; with the first strip the bias.
    void run_strip(int64_t l, int64_t strip, char* memory) const {
        const Layer<T>& layer = layers[l];
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t c = strip * STRIP, n = least(STRIP, layer.in - c);
        const bool direct = wanted.weights && wanted.weights[l].dtype == OWN<T> && width % LANES<T> == 0;
        const bool multiplied = wanted.weights || (wanted.gate && !by_token());
        const bool along = wanted.gate && by_token();
        T* const d = direct ? reinterpret_cast<T*>(at(wanted.weights[l], c)) : w.d;
        const int64_t step = direct ? width : spacing<T>(width);
        clear(w.sums, filled<T>(width));
        clear(w.along, STRIP);
        layers.weight_gradients(layer, c, n, multiplied || along ? w.z : nullptr, multiplied ? d : nullptr, step,
                                [&](int64_t from, int64_t rest, const Block<T>& z) {
                                    const Block<T> found = upstream(l, from, rest, w.y);
                                    if (strip == 0) add_rows(found, rest, width, w.sums);
                                    if (along) add_slopes(l, from, rest, z, n, w.along);
                                    return found;
                                });
        if (wanted.gate) gate_part(l, strip, n, Block<T>{d, step}, w);
        const T scale = factor(l);
        for (int64_t i = 0; wanted.weights && i < n; ++i) {
            T* const row = d + i * step;
            if (!by_token())
                for (int64_t k = 0; k < filled<T>(width); ++k) row[k] *= scale;
            if (!direct) write(row, width, at(wanted.weights[l], c + i), wanted.weights[l].dtype);
        }
        if (!wanted.biases || strip > 0) return;
        for (int64_t k = 0; k < width; ++k) w.sums[k] *= scale;
        write(w.sums, width, wanted.biases[l].data, wanted.biases[l].dtype);
    }

    /// `along += ds^T z` for n channels of z.
    void add_slopes(int64_t l, int64_t from, int64_t count_rows, const Block<T>& z, int64_t n, T* along) const {
        for (int64_t i = 0; i < count_rows; ++i) {
            const T ds = slopes[l * rows + from + i];
            const T* const row = z.data + i * z.step;
            for (int64_t c = 0; c < n; ++c) along[c] += ds * row[c];
        }
    }

    /// What a strip adds to the gate's gradient: `<W, z^T g> + b . sum g`, or `(ds^T z) W + sum(ds) b`.
    void gate_part(int64_t l, int64_t strip, int64_t n, const Block<T>& d, const Workspace& w) const {
        const Layer<T>& layer = layers[l];
        const T* const map = layer.map.data + strip * STRIP * layer.map.step;
        T* const to = parts + (l * strips + strip) * part();
        read_vector(call.biases, l, width, w.bias);
        if (!by_token()) {
            *to = strip == 0 ? dot(w.sums, w.bias, width) : T(0);
            for (int64_t i = 0; i < n; ++i) *to += dot(d.data + i * d.step, map + i * layer.map.step, width);
            return;
        }
        T all = 0;
        for (int64_t m = 0; strip == 0 && m < rows; ++m) all += slopes[l * rows + m];
        for (int64_t k = 0; k < filled<T>(width); k += LANES<T>) {
            Vector<T> sum = all * load(w.bias + k);
            for (int64_t i = 0; i < n; ++i) sum += w.along[i] * load(map + i * layer.map.step + k);
            store(to + k, sum);
        }
    }

    /// The gate's gradient, the parts added up in order.
    void write_gate() const {
        const int64_t size = by_token() ? width : count;
        const Scratch memory(size * int64_t(sizeof(T)));
        T* const total = reinterpret_cast<T*>(memory.data());
        clear(total, size);
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t strip = 0; strip < divide_up(layers[l].in, STRIP); ++strip) {
                const T* const its = parts + (l * strips + strip) * part();
                if (!by_token()) total[l] += *its;
                for (int64_t k = 0; by_token() && k < width; ++k) total[k] += its[k] * root();
            }
        }
        if (!by_token()) {
            T mean = 0;
            for (int64_t l = 0; l < count; ++l) mean += gate[l] * total[l];
            for (int64_t l = 0; l < count; ++l) total[l] = gate[l] * (total[l] - mean);
        }
        write(total, size, wanted.gate[0].data, wanted.gate[0].dtype);
    }
};

bool in_double(const Fuse& call) {
    return call.tokens[0].dtype == Dtype::float64 || call.weights[0].dtype == Dtype::float64;
}

}  // namespace

void fuse_forward(const Fuse& call, Operands outputs, Operands sums) {
    if (in_double(call))
        Forward<double>(call, outputs, sums).run();
    else
        Forward<float>(call, outputs, sums).run();
}

void fuse_backward(const Fuse& call, Operands grads, const FuseGradients& wanted) {
    if (in_double(call))
        Backward<double>(call, grads, wanted).run();
    else
        Backward<float>(call, grads, wanted).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
