// Project: `activation(norm(tokens) W + b) + residual` for every entry, see fastav/ops/project.py.
//
// Forward is one item for a block of rows. Backward has items for blocks of rows, which give the tokens' gradients and,
// where there is an activation, keep the gradients of y = z W + b; then items for strips of W's rows and for the
// residuals.
#include "activation.h"
#include "linear.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

/// A residual or its gradient as the output's rows: (samples, inner, width), stride 0 where it is broadcast.
Rows broadcast_rows(const Operand& x, int64_t count, int64_t inner, int64_t width) {
    Rows found{x.data, x.dtype, count, inner, width, 0, 0, 0};
    int64_t* const strides[] = {&found.channel, &found.row, &found.sample};
    for (int32_t i = 0; i < x.dim; ++i)
        if (x.size[x.dim - 1 - i] != 1) *strides[i] = x.stride[x.dim - 1 - i];
    return found;
}

/// Rows of a sample.
int64_t rows_of_sample(const Operand& tokens) { return tokens.size[tokens.dim - 2]; }

template <class T>
class Forward {
    const Project& call;
    const Operands outputs;
    const Layers<T> layers;

public:
    Forward(const Project& of, Operands out)
        : call(of), outputs(out), layers(of.tokens, of.weights, of.norm, of.eps) {}

    void run() const {
        const Scratch memory = layers.prepare(true, false, false, false);
        const Items items = layers.row_items();
        Cutter workspace;
        cut(workspace);
        for_each(items.total(), workspace.used(), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            run_item(found.entry, found.item * layers[found.entry].block, from);
        });
    }

private:
    struct Workspace {
        T *z, *y, *bias, *residual;
    };

    Workspace cut(Cutter& cutter) const {
        Workspace w;
        w.z = cutter.array<T>(layers.room_in);
        w.y = cutter.array<T>(layers.room_out);
        w.bias = cutter.array<T>(filled<T>(layers.out));
        w.residual = cutter.array<T>(filled<T>(layers.out));
        return w;
    }

    void run_item(int64_t g, int64_t from, char* memory) const {
        const Layer<T>& layer = layers[g];
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t n = least(layer.block, layer.tokens.count - from), width = layer.out;
        const Rows to = rows_of(outputs[g]);
        const bool direct = to.dtype == OWN<T> && width % LANES<T> == 0;
        T* const y = direct ? reinterpret_cast<T*>(to.at(from)) : w.y;
        const int64_t step = direct ? width : spacing<T>(width);
        layers.map(layer, n, layers.rows(layer, from, n, w.z), y, step);
        read_vector(call.biases, g, width, w.bias);
        Rows residuals{};
        if (call.residuals)
            residuals = broadcast_rows(call.residuals[g], to.count, rows_of_sample(call.tokens[g]), width);
        for (int64_t i = 0; i < n; ++i) {
            const T* residual = nullptr;
            if (call.residuals) residual = residual_row(residuals, from + i, w.residual);
            finish(y + i * step, width, w.bias, residual);
            if (!direct) write(y + i * step, width, to.at(from + i), to.dtype);
        }
    }

    /// A residual's row, whose last vector may be read whole.
    static const T* residual_row(const Rows& x, int64_t m, T* room) {
        if (x.width % LANES<T> == 0) return dense(x.at(m), x.dtype, x.channel, x.width, room);
        read(x.at(m), x.dtype, x.channel, x.width, room);
        clear(room + x.width, filled<T>(x.width) - x.width);
        return room;
    }

    void finish(T* y, int64_t width, const T* bias, const T* residual) const {
        if (!call.biases && !residual && call.activation == Activation::none) return;
        for (int64_t c = 0; c < width; c += LANES<T>) {
            const Vector<T> v = activate<T>(call.activation, load(y + c) + load(bias + c));
            store(y + c, residual ? v + load(residual + c) : v);
        }
    }
};

template <class T>
class Backward {
    const Project& call;
    const Operands grads;
    const ProjectGradients& wanted;
    const Layers<T> layers;

    bool activated() const { return call.activation != Activation::none; }

public:
    Backward(const Project& of, Operands upstream, const ProjectGradients& gradients)
        : call(of), grads(upstream), wanted(gradients), layers(of.tokens, of.weights, of.norm, of.eps) {}

    void run() const {
        const bool below = wanted.tokens || wanted.weights || wanted.biases;  // more than residuals
        const bool moments = wanted.tokens || wanted.weights;
        const bool upstream = below && activated();
        const Scratch memory = layers.prepare(upstream, bool(wanted.tokens), moments, upstream);
        Cutter workspace;
        cut(workspace);
        if (wanted.tokens || upstream || (moments && call.norm != Norm::none)) {
            const Items items = layers.row_items();
            for_each(items.total(), workspace.used(), [&](int64_t item, char* from) {
                const auto found = items.find(item);
                run_rows(found.entry, found.item * layers[found.entry].block, from);
            });
        }
        const Items items = last_items();
        for_each(items.total(), workspace.used(), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            if (found.entry < layers.count)
                run_strip(found.entry, found.item * STRIP, from);
            else
                run_residual(found.entry - layers.count, found.item * ROWS, from);
        });
    }

private:
    struct Workspace {
        T *z, *y, *d, *turned, *sums;
    };

    Workspace cut(Cutter& cutter) const {
        Workspace w;
        w.z = cutter.array<T>(most(layers.room_in, layers.room(DEEP, STRIP)));
        w.y = cutter.array<T>(layers.room(DEEP, layers.out));
        w.d = cutter.array<T>(most(layers.room_in, layers.room(STRIP, layers.out)));
        w.turned = cutter.array<T>(wanted.tokens ? layers.room_turned() : 0);
        w.sums = cutter.array<T>(filled<T>(layers.out));
        return w;
    }

    /// Gradients of y for n rows, whose last vectors may be read whole.
    Block<T> upstream(int64_t g, int64_t from, int64_t n, T* room) const {
        const Layer<T>& layer = layers[g];
        const int64_t step = spacing<T>(layer.out);
        if (layer.upstream) return {layer.upstream + from * step, step};
        return take(rows_of(grads[g]), from, n, 0, layer.out, true, room);
    }

    void run_rows(int64_t g, int64_t from, char* memory) const {
        const Layer<T>& layer = layers[g];
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t n = least(layer.block, layer.tokens.count - from);
        Block<T> z{};
        if (activated() || call.norm != Norm::none) z = layers.rows(layer, from, n, w.z);
        if (activated()) keep_upstream(g, from, n, z, w);
        if (wanted.tokens)
            layers.token_gradients(g, from, n, z, upstream(g, from, n, w.y), T(1), wanted.tokens[g], w.d, w.turned);
    }

    /// The gradients of n rows of y, through the activation.
    void keep_upstream(int64_t g, int64_t from, int64_t n, const Block<T>& z, const Workspace& w) const {
        const Layer<T>& layer = layers[g];
        const int64_t step = spacing<T>(layer.out);
        T* const y = layer.upstream + from * step;
        layers.map(layer, n, z, y, step);
        read_vector(call.biases, g, layer.out, w.sums);
        const Block<T> grad = take(rows_of(grads[g]), from, n, 0, layer.out, true, w.y);
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t c = 0; c < layer.out; c += LANES<T>) {
                T* const to = y + i * step + c;
                const Vector<T> v = load(to) + load(w.sums + c);
                store(to, load(grad.data + i * grad.step + c) * slope<T>(call.activation, v));
            }
        }
    }

    /// Strips of each W; the biases' gradients come with the first one. Then blocks of each residual's rows.
    Items last_items() const {
        Items items(2 * layers.count);
        for (int64_t i = 0; i < 2 * layers.count; ++i) {
            const Layer<T>& layer = layers[i % layers.count];
            const int64_t size = layer.tokens.count * layer.out;
            if (i < layers.count) {
                const int64_t strips = wanted.weights ? divide_up(layer.in, STRIP) : wanted.biases ? 1 : 0;
                items.put(i, strips, size * least(STRIP, layer.in));
            } else {
                const int64_t rows = wanted.residuals ? rows_of_residual(i - layers.count) : 0;
                items.put(i, divide_up(rows, ROWS), rows ? size / divide_up(rows, ROWS) : 0);
            }
        }
        return items;
    }

    void run_strip(int64_t g, int64_t c, char* memory) const {
        const Layer<T>& layer = layers[g];
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t width = least(STRIP, layer.in - c), out = layer.out;
        const bool bias = wanted.biases && c == 0;
        const bool direct = wanted.weights && wanted.weights[g].dtype == OWN<T> && out % LANES<T> == 0;
        T* const d = direct ? reinterpret_cast<T*>(at(wanted.weights[g], c)) : w.d;
        const int64_t step = direct ? out : spacing<T>(out);
        clear(w.sums, filled<T>(out));
        layers.weight_gradients(layer, c, width, wanted.weights ? w.z : nullptr, wanted.weights ? d : nullptr, step,
                                [&](int64_t from, int64_t n, const Block<T>&) {
                                    const Block<T> found = upstream(g, from, n, w.y);
                                    if (bias) add_rows(found, n, out, w.sums);
                                    return found;
                                });
        if (bias) write(w.sums, out, wanted.biases[g].data, wanted.biases[g].dtype);
        if (wanted.weights && !direct)
            for (int64_t i = 0; i < width; ++i)
                write(d + i * step, out, at(wanted.weights[g], c + i), wanted.weights[g].dtype);
    }

    // ---- residuals -------------------------------------------------------------------------------------------------

    /// Size of dimension d of three of the residual's gradient.
    int64_t residual_size(int64_t g, int d) const {
        const Operand& x = wanted.residuals[g];
        const int own = d - 3 + x.dim;
        return own < 0 ? 1 : x.size[own];
    }

    int64_t rows_of_residual(int64_t g) const { return residual_size(g, 0) * residual_size(g, 1); }

    /// Rows of the residual's gradient, each the sum of the rows, and of their elements, that it was broadcast to.
    void run_residual(int64_t g, int64_t begin, char* memory) const {
        const Operand& to = wanted.residuals[g];
        Cutter cutter(memory);
        const Workspace w = cut(cutter);
        const int64_t width = layers[g].out, inner = rows_of_sample(call.tokens[g]);
        const int64_t samples = call.tokens[g].dim == 3 ? call.tokens[g].size[0] : 1;
        const int64_t own_inner = residual_size(g, 1), own_width = residual_size(g, 2);
        const bool every_sample = residual_size(g, 0) != samples, every_row = own_inner != inner;
        const Rows grad = rows_of(grads[g]);
        const int64_t end = least(begin + ROWS, rows_of_residual(g));
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / own_inner, m = row % own_inner;
            const int64_t first = every_sample ? 0 : b, last = every_sample ? samples : b + 1;
            const T* sum;
            if (!every_sample && !every_row) {
                sum = dense(grad.at(b * inner + m), grad.dtype, grad.channel, width, w.sums);
            } else {
                clear(w.sums, filled<T>(width));
                add_up(grad, first, last, inner, every_row ? -1 : m, w);
                sum = w.sums;
            }
            const T all = own_width == width ? T(0) : total(sum, width);
            if (own_width != width) sum = &all;
            write(sum, own_width, to.data + row * own_width * size_of(to.dtype), to.dtype);
        }
    }

    /// `sums += ` row m, or with -1 every row, of samples [first, last).
    void add_up(const Rows& grad, int64_t first, int64_t last, int64_t inner, int64_t m, const Workspace& w) const {
        if (m < 0) {
            for (int64_t from = first * inner; from < last * inner; from += DEEP) {
                const int64_t n = least(DEEP, last * inner - from);
                add_rows(take(grad, from, n, 0, grad.width, true, w.y), n, grad.width, w.sums);
            }
            return;
        }
        for (int64_t b = first; b < last; ++b) {
            const T* const row = dense(grad.at(b * inner + m), grad.dtype, grad.channel, grad.width, w.y);
            for (int64_t c = 0; c < grad.width; ++c) w.sums[c] += row[c];
        }
    }
};

bool in_double(const Project& call) {
    return call.tokens[0].dtype == Dtype::float64 || call.weights[0].dtype == Dtype::float64;
}

}  // namespace

void project_forward(const Project& call, Operands outputs) {
    if (in_double(call))
        Forward<double>(call, outputs).run();
    else
        Forward<float>(call, outputs).run();
}

void project_backward(const Project& call, Operands grads, const ProjectGradients& wanted) {
    if (in_double(call))
        Backward<double>(call, grads, wanted).run();
    else
        Backward<float>(call, grads, wanted).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
