// The gradients of distill, see fastav/ops/distill.py: one more pass over the taps.
//
// With z the normalised rows without affine part, w and b that part, q' = scale q w and g' = g w, p comes from the
// saved log-sum-exp:
//     ds = p (g' z^T - delta)    delta_r = g_r . (o_r - b)    S_r = sum_n ds_rn
//     dq_r = scale (w (ds z)_r - S_r (o_r - b))    db = sum_r g_r
//     dw = sum_r (p z)_r g_r + scale q_r ((ds z)_r - S_r (p z)_r)    dz_n = sum_r ds_rn q'_r + p_rn g'_r
// S would be zero if delta were not rounded otherwise than g' z^T, and o to its dtype: its terms take out again what
// that leaves, which a saturated softmax would otherwise multiply with large rows.
//
// A work item is a run of samples of one tap, which it adds up, or a cut of a sample where samples are few.
#include "distill.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

template <class T>
class Backward : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::count, Base::rows, Base::lanes, Base::taps;
    const Operands grads, outputs, sums;
    const DistillGradients& wanted;

    /// What a cut adds up: `ds z` and, unless `recovers`, `p z`, both (rows, wide), and S (lanes).
    struct Part {
        T *ds_z, *p_z, *s;

        static int64_t elements(int64_t rows, int64_t lanes, int64_t wide) { return 2 * rows * wide + lanes; }
        Part(T* memory, int64_t rows, int64_t wide)
            : ds_z(memory), p_z(memory + rows * wide), s(memory + 2 * rows * wide) {}
    };

    /// What a run of samples adds to shared gradients: queries (rows, wide), weight (wide), bias (wide).
    int64_t sum_elements(const Tap<T>& tap) const { return (rows + 2) * tap.wide; }

public:
    Backward(const Distill& of, Operands upstream, Operands out, Operands kept, const DistillGradients& gradients)
        : Base(of), grads(upstream), outputs(out), sums(kept), wanted(gradients) {}

    void run() {
        const Scratch memory = this->shared_memory([&](Cutter& cutter, Tap<T>& tap) {
            tap.packed = cutter.array<T>(tap.shared ? tap.wide * lanes : 0);
            const int64_t parts = tap.cuts > 1 ? tap.batch * tap.cuts : 0;
            tap.parts = cutter.array<T>(parts * Part::elements(rows, lanes, tap.wide));
            tap.sums = cutter.array<T>(divide_up(tap.batch, tap.run) * sum_elements(tap));
        });
        this->pack_shared();
        for (int64_t g = 0; g < count; ++g) taps()[g].recovers = recovers(g);
        Items items(count);
        for (int64_t g = 0; g < count; ++g) {
            const Tap<T>& tap = taps()[g];
            items.put(g, divide_up(tap.batch, tap.run) * tap.cuts, tap.run * tap.cut_tokens * tap.wide);
        }
        Cutter workspace;
        cut(workspace);
        for_each(items.total(), workspace.used(), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const Tap<T>& tap = taps()[found.entry];
            const int64_t run = found.item / tap.cuts, end = least(tap.batch, (run + 1) * tap.run);
            for (int64_t b = run * tap.run; b < end; ++b) pass_over(found.entry, b, found.item % tap.cuts, from);
        });
        merge_cuts();
        sum_runs();
    }

private:
    struct Workspace {
        T *tile, *room, *row, *w, *packed, *scores, *part, *delta, *top;
        T *turned, *left, *d_tile;  // for the taps' own gradient
    };

    Workspace cut(Cutter& cutter) const {
        const int64_t widest = this->widest, if_taps = wanted.taps ? 1 : 0;
        Workspace w;
        w.tile = cutter.array<T>(BLOCK * widest);
        w.room = cutter.array<T>(this->room());
        w.row = cutter.array<T>(most(5, LANES<T>) * widest);
        w.w = cutter.array<T>(widest);
        w.packed = cutter.array<T>(widest * 2 * lanes);
        w.scores = cutter.array<T>(BLOCK * 2 * lanes);
        w.part = cutter.array<T>(Part::elements(rows, lanes, widest));
        w.delta = cutter.array<T>(lanes);
        w.top = cutter.array<T>(lanes);
        w.turned = cutter.array<T>(if_taps * 2 * rows * widest);
        w.left = cutter.array<T>(if_taps * 2 * rows * BLOCK);
        w.d_tile = cutter.array<T>(if_taps * BLOCK * widest);
        return w;
    }

    void pass_over(int64_t g, int64_t b, int64_t cut_index, char* from) const {
        const Tap<T>& tap = taps()[g];
        Cutter cutter(from);
        const Workspace w = cut(cutter);
        prepare(g, b, w);
        const bool whole = tap.cuts == 1;
        const int64_t elements = Part::elements(rows, lanes, tap.wide);
        const Part part(whole ? w.part : tap.parts + (b * tap.cuts + cut_index) * elements, rows, tap.wide);
        for (int64_t r = 0; r < lanes; ++r) part.s[r] = T(0);
        if (wanted.taps) clear_tokens(g, b, cut_index);
        bool first = true;
        const Tile<T> z{w.tile, BLOCK};
        const bool pool_ds = wanted.queries || wanted.weight, pool_p = wanted.weight && !tap.recovers;
        this->blocks(g, b, cut_index, w.room, [&](const Tokens<T>& block, Ahead& ahead) {
            ahead.spread(this->products(tap, block.count, 2 * lanes, int64_t(pool_ds) + pool_p));
            this->score(tap, block, z, w.packed, 2 * lanes, w.scores, ahead);
            for (int64_t r = 0; r < lanes; r += LANES<T>) slopes(w, block.count, r, part.s + r);
            if (pool_ds) this->pool(tap, block, z, w.scores, 2 * lanes, part.ds_z, !first, ahead);
            if (pool_p) this->pool(tap, block, z, w.scores + lanes, 2 * lanes, part.p_z, !first, ahead);
            if (wanted.taps) into_taps(g, b, block, z, w);
            first = false;
        });
        for (int64_t i = 0; i < 2 * rows * tap.wide && first; ++i) part.ds_z[i] = T(0);  // no block has written them
        if (whole) finish(g, b, part, w.w, w.row);
    }

    /// Queries and upstream gradients of a sample, side by side: channel c of row r at `packed[c * 2 lanes + r]` and
    /// `packed[c * 2 lanes + lanes + r]`; its log-sum-exps and delta.
    void prepare(int64_t g, int64_t b, const Workspace& w) const {
        const Tap<T>& tap = taps()[g];
        read_affine(call.weight, g, tap.width, T(1), w.w);
        if (tap.shared)
            for (int64_t c = 0; c < tap.width; ++c)
                for (int64_t r = 0; r < lanes; r += LANES<T>)
                    store(w.packed + c * 2 * lanes + r, load(tap.packed + c * lanes + r));
        else
            pack(call.queries[g], b, rows, lanes, tap.scale, w.w, w.row, w.packed, 2 * lanes);
        pack(grads[g], b, rows, lanes, T(1), w.w, w.row, w.packed + lanes, 2 * lanes);
        T *const centred = w.row, *const grad = w.row + tap.wide, *const bias = w.row + 2 * tap.wide;
        read_affine(call.bias, g, tap.width, T(0), bias);
        for (int64_t r = 0; r < lanes; ++r) {
            w.top[r] = w.delta[r] = T(0);
            if (r >= rows) continue;
            w.top[r] = log_sum(g, b, r);
            centre_output(g, b, r, bias, centred);
            w.delta[r] = dot(dense_row(grads[g], b, r, grad), centred, tap.width);
        }
        if (!wanted.taps) return;
        for (int64_t r = 0; r < rows; ++r) {
            read_row(call.queries[g], b, r, w.turned + r * tap.wide);
            read_row(grads[g], b, r, w.turned + (rows + r) * tap.wide);
            for (int64_t c = 0; c < tap.width; ++c) {
                w.turned[r * tap.wide + c] *= tap.scale * w.w[c];
                w.turned[(rows + r) * tap.wide + c] *= w.w[c];
            }
        }
    }

    T log_sum(int64_t g, int64_t b, int64_t r) const {
        T sum;
        read(at(sums[g], b, r), sums[g].dtype, 1, 1, &sum);
        return sum;
    }

    /// `o_r - b`; what a row without keys gets matters nowhere, its p is zero.
    void centre_output(int64_t g, int64_t b, int64_t r, const T* bias, T* to) const {
        const T* const o = dense_row(outputs[g], b, r, to);
        for (int64_t c = 0; c < taps()[g].width; ++c) to[c] = o[c] - bias[c];
    }

    /// For one vector of rows: `q' z` and `g' z` of n tokens become ds and p, and ds is added to `s`.
    void slopes(const Workspace& w, int64_t n, int64_t from, T* s) const {
        const Vector<T> top = load(w.top + from), delta = load(w.delta + from);
        Vector<T> sum{};
        for (int64_t t = 0; t < n; ++t) {
            T *const score = w.scores + t * 2 * lanes + from, *const along = score + lanes;
            const Vector<T> p = exp<T>(load(score) - top), ds = p * (load(along) - delta);
            store(score, ds);
            store(along, p);
            sum += ds;
        }
        store(s, load(s) + sum);
    }

    /// Gradients of a block's tokens: of the normalised rows into a tile, then through the norm.
    void into_taps(int64_t g, int64_t b, const Tokens<T>& block, const Tile<T>& z, const Workspace& w) const {
        const Tap<T>& tap = taps()[g];
        const int64_t n = block.count;
        for (int64_t t = 0; t < n; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
                w.left[r * n + t] = w.scores[t * 2 * lanes + r];
                w.left[(rows + r) * n + t] = w.scores[t * 2 * lanes + lanes + r];
            }
        }
        const Tile<T> d{w.d_tile, BLOCK};
        for (int64_t p = 0; p < panels(tap.width); ++p)
            multiply<T, Left::columns>(n, PANEL / LANES<T>, 2 * rows, w.left, n, w.turned + p * PANEL, tap.wide,
                                       d.panel(p), PANEL, false);
        const Operand& to = wanted.taps[g];
        for (int64_t t = 0; t < n; ++t) {
            norm_backward(d, z, t, tap.width, call.norm, block.moments[t].inverse, w.row);
            write(w.row, tap.width, at(to, b, block.places[t]), to.dtype);
        }
    }

    /// Zeros where masked tokens' gradients stand.
    void clear_tokens(int64_t g, int64_t b, int64_t cut_index) const {
        const Tap<T>& tap = taps()[g];
        if (!call.key_mask) return;
        const Operand& to = wanted.taps[g];
        const int64_t end = least(tap.tokens, (cut_index + 1) * tap.cut_tokens);
        for (int64_t n = cut_index * tap.cut_tokens; n < end; ++n)
            if (!*at(call.key_mask[g], b, n)) __builtin_memset(at(to, b, n), 0, tap.width * size_of(to.dtype));
    }

    void merge_cuts() const {
        Items items(count);
        for (int64_t g = 0; g < count; ++g) items.put(g, taps()[g].cuts > 1 ? taps()[g].batch : 0, taps()[g].wide);
        for_each(items.total(), 6 * this->widest * int64_t(sizeof(T)), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const Tap<T>& tap = taps()[found.entry];
            Cutter cutter(from);
            T *w = cutter.array<T>(tap.wide), *room = cutter.array<T>(5 * tap.wide);
            const int64_t elements = Part::elements(rows, lanes, tap.wide);
            T* const parts = tap.parts + found.item * tap.cuts * elements;
            const int64_t pooled = rows * tap.wide;
            for (int64_t k = 1; k < tap.cuts; ++k) {
                const T* const its = parts + k * elements;
                for (int64_t i = 0; i < pooled; ++i) parts[i] += its[i];
                for (int64_t i = pooled; i < 2 * pooled && wanted.weight && !tap.recovers; ++i) parts[i] += its[i];
                for (int64_t i = 2 * pooled; i < elements; ++i) parts[i] += its[i];
            }
            read_affine(call.weight, found.entry, tap.width, T(1), w);
            finish(found.entry, found.item, Part(parts, rows, tap.wide), w, room);
        });
    }

    /// Whether `(o - b) / w` is p z to within a few roundings of a normalised row's numbers, so that p z need not be
    /// added up again: the outputs are in T, and b takes few digits of them.
    bool recovers(int64_t g) const {
        const bool rounded = size_of(outputs[g].dtype) < int64_t(sizeof(T));
        if (!wanted.weight || !call.weight || call.norm == Norm::none || rounded) return false;
        const Scratch memory(2 * this->widest * int64_t(sizeof(T)));
        T *const w = reinterpret_cast<T*>(memory.data()), *const bias = w + this->widest;
        read_affine(call.weight, g, taps()[g].width, T(1), w);
        read_affine(call.bias, g, taps()[g].width, T(0), bias);
        bool found = true;
        for (int64_t c = 0; c < taps()[g].width; ++c)
            found = found && size(w[c]) > 1e-30 && size(bias[c]) <= 4 * size(w[c]);  // no subnormal numbers
        return found;
    }

    static double size(T x) { return __builtin_fabs(double(x)); }

    /// What a sample adds to the gradients; those of its own queries are written.
    void finish(int64_t g, int64_t b, const Part& part, const T* w, T* room) const {
        const Tap<T>& tap = taps()[g];
        T* const d_queries = tap.sums + b / tap.run * sum_elements(tap);
        T *const d_weight = d_queries + rows * tap.wide, *const d_bias = d_weight + tap.wide;
        T *const row = room, *const bias = room + tap.wide, *const other = room + 2 * tap.wide;
        T *const recovered = room + 3 * tap.wide, *const centred = room + 4 * tap.wide;
        read_affine(call.bias, g, tap.width, T(0), bias);
        for (int64_t c = 0; c < tap.width; ++c) recovered[c] = T(0);
        if (b % tap.run == 0)
            for (int64_t i = 0; i < sum_elements(tap); ++i) d_queries[i] = T(0);
        for (int64_t r = 0; r < rows; ++r) {
            const T sum = log_sum(g, b, r), s = part.s[r], tau = tap.scale;
            if (sum == T(LOWEST)) continue;  // no keys
            const T *const ds_z = part.ds_z + r * tap.wide, *const p_z = part.p_z + r * tap.wide;
            centre_output(g, b, r, bias, centred);
            const T* const up = dense_row(grads[g], b, r, row);
            if (wanted.bias) {
                const T one = T(1) + T(0) * sum;  // NaN where the scores were
                for (int64_t c = 0; c < tap.width; ++c) d_bias[c] += one * up[c];
            }
            if (wanted.weight) {
                const T* const q = dense_row(call.queries[g], b, r, other);
                if (tap.recovers)
                    for (int64_t c = 0; c < tap.width; ++c) recovered[c] += centred[c] * (up[c] - s * tau * q[c]);
                else
                    for (int64_t c = 0; c < tap.width; ++c) d_weight[c] += p_z[c] * (up[c] - s * tau * q[c]);
                for (int64_t c = 0; c < tap.width; ++c) d_weight[c] += tau * q[c] * ds_z[c];
            }
            if (wanted.queries) {
                T* const to = d_queries + r * tap.wide;
                for (int64_t c = 0; c < tap.width; ++c) to[c] += tau * (w[c] * ds_z[c] - s * centred[c]);
            }
        }
        for (int64_t c = 0; c < tap.width && wanted.weight && tap.recovers; ++c) d_weight[c] += recovered[c] / w[c];
        if (wanted.queries && !tap.shared) {
            const Operand& to = wanted.queries[g];
            for (int64_t r = 0; r < rows; ++r) {
                write(d_queries + r * tap.wide, tap.width, at(to, b, r), to.dtype);
                for (int64_t c = 0; c < tap.width; ++c) d_queries[r * tap.wide + c] = T(0);
            }
        }
    }

    /// Gradients of what the samples share: each row's sum over the runs, in order.
    void sum_runs() const {
        Items items(count);
        for (int64_t g = 0; g < count; ++g) items.put(g, rows + 2, taps()[g].batch * taps()[g].wide);
        for_each(items.total(), this->widest * int64_t(sizeof(T)), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const int64_t g = found.entry, row = found.item;
            const Tap<T>& tap = taps()[g];
            const Operands& list = row < rows ? wanted.queries : row == rows ? wanted.weight : wanted.bias;
            if (!list || (row < rows && !tap.shared)) return;
            T* const total = reinterpret_cast<T*>(from);
            for (int64_t c = 0; c < tap.width; ++c) total[c] = T(0);
            for (int64_t run = 0; run * tap.run < tap.batch; ++run) {
                const T* const its = tap.sums + run * sum_elements(tap) + row * tap.wide;
                for (int64_t c = 0; c < tap.width; ++c) total[c] += its[c];
            }
            write(total, tap.width, row < rows ? at(list[g], row) : list[g].data, list[g].dtype);
        });
    }
};

}  // namespace

void distill_backward(const Distill& call, Operands grads, Operands outputs, Operands sums,
                      const DistillGradients& wanted) {
    if (in_double(call))
        Backward<double>(call, grads, outputs, sums, wanted).run();
    else
        Backward<float>(call, grads, outputs, sums, wanted).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
