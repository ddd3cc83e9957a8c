// The gradients of inject, see inject.cpp for how the work is cut.
//
// With z the normalised rows and g the upstream gradient, an item finds p again and then
//     dp = g v^T    ds = p (dp - sum_m p dp)    dv = p^T g    dk = scale ds^T z    dx = g + scale norm'(ds k)
// It sums dk and dv over its tokens. Where a sample is cut, a second phase adds its cuts' sums, in order.
#include "inject.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

template <class T>
class Backward : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::count, Base::keys, Base::lanes, Base::stages, Base::widest, Base::widest_room;
    const Operands grads;
    const InjectGradients& wanted;

    /// Sums over a cut: `ds^T z` and `p^T g`, both (keys, wide).
    int64_t part_elements(int64_t wide) const { return 2 * keys * wide; }

public:
    Backward(const Inject& of, Operands upstream, const InjectGradients& gradients)
        : Base(of), grads(upstream), wanted(gradients) {}

    void run() {
        const Scratch memory = cut_parts();
        Cutter sizes;
        cut(sizes);
        this->for_cuts(sizes.used(), [&](int64_t s, int64_t b, int64_t cut_index, char* from) {
            Cutter cutter(from);
            run_item(s, b, cut_index, cut(cutter));
        });
        merge_cuts();
    }

private:
    struct Workspace {
        T *rows, *upstream, *tile, *scores, *along, *keys, *values, *part;
        T *d_tile, *flat_keys, *row;  // for the features' gradient
    };

    Workspace cut(Cutter& cutter) const {
        const bool features = bool(wanted.features);
        Workspace w;
        w.rows = cutter.array<T>(this->largest_block);
        w.upstream = cutter.array<T>(this->largest_block);
        w.tile = cutter.array<T>(features ? this->largest_block : this->most_tokens * PANEL);
        w.scores = cutter.array<T>(this->score_elements());
        w.along = cutter.array<T>(this->score_elements());
        w.keys = cutter.array<T>(widest * lanes);
        w.values = cutter.array<T>(widest * lanes);
        w.part = cutter.array<T>(part_elements(widest));
        w.d_tile = cutter.array<T>(features ? this->largest_block : 0);
        w.flat_keys = cutter.array<T>(features ? keys * widest_room : 0);
        w.row = cutter.array<T>(features ? widest : 0);
        return w;
    }

    /// Memory for what the cuts of a sample add up, each for itself.
    Scratch cut_parts() const {
        Cutter sizes;
        for (int64_t s = 0; s < count; ++s) sizes.array<T>(cut_elements(stages()[s]));
        Scratch memory(sizes.used());
        Cutter cutter(memory.data());
        for (int64_t s = 0; s < count; ++s) stages()[s].parts = cutter.array<T>(cut_elements(stages()[s]));
        return memory;
    }

    int64_t cut_elements(const Stage<T>& stage) const {
        return stage.cuts > 1 ? stage.batch * stage.cuts * part_elements(stage.wide) : 0;
    }

    void run_item(int64_t s, int64_t b, int64_t cut_index, const Workspace& w) const {
        const Stage<T>& stage = stages()[s];
        const Tile<T> scores{w.scores, stage.block}, along{w.along, stage.block};
        this->turn_rows(call.keys[s], b, stage.scale, w.keys);
        this->turn_rows(call.values[s], b, T(1), w.values);
        const int64_t elements = part_elements(stage.wide);
        T* const part = stage.cuts > 1 ? stage.parts + (b * stage.cuts + cut_index) * elements : w.part;
        for (int64_t i = 0; i < elements; ++i) part[i] = T(0);
        Tokens<T> x;
        this->for_blocks(stage, cut_index, [&](int64_t first, int64_t n) {
            this->read_tokens(stage, call.features[s], b, first, n, w.rows, x);
            const Block<T> g = take(rows_of_sample(grads[s], b), first, n, 0, stage.width, true, w.upstream);
            this->score(stage, x, n, w.keys, scores, Ahead{call.features[s], b, first + n}, w.tile);
            score_upstream(stage, g, n, w.values, along, Ahead{grads[s], b, first + n});
            for (int64_t t = 0; t < n; ++t) slopes(scores, along, t);
            if (wanted.values) into_values(stage, scores, g, n, part + keys * stage.wide);
            if (wanted.keys || wanted.features) into_keys(stage, along, x, n, w, part);
            if (wanted.features) into_features(s, b, first, n, x, g, w);
        });
        if (stage.cuts > 1) return;
        finish(s, b, part, true);
        finish(s, b, part, false);
    }

    /// `along := g values^T`, (n, lanes); meanwhile `ahead` is fetched.
    void score_upstream(const Stage<T>& stage, const Block<T>& g, int64_t n, const T* values, const Tile<T>& along,
                        const Ahead& ahead) const {
        for (int64_t p = 0; p < panels(stage.width); ++p) {
            for (int64_t t = 0; t < n; t += FEW) {
                const int64_t few = least(FEW, n - t);
                ahead.fetch(t, few, p * PANEL, stage.channels(p));
                for (int64_t m = 0; m < lanes; m += PANEL)
                    multiply<T, Left::rows>(few, least(PANEL, lanes - m) / LANES<T>, stage.channels(p),
                                            g.data + t * g.step + p * PANEL, g.step, values + p * PANEL * lanes + m,
                                            lanes, along.row(m / PANEL, t), PANEL, p > 0);
            }
        }
    }

    /// A token's scores and `g v^T` become p and ds.
    void slopes(const Tile<T>& scores, const Tile<T>& along, int64_t t) const {
        const T inverse = this->powers(scores, t);
        Vector<T> products{};
        for (int64_t i = 0; i < lanes; i += LANES<T>)
            products += load(this->place(scores, t, i)) * load(this->place(along, t, i));
        const T mean = sum<T>(products) * inverse;
        for (int64_t i = 0; i < lanes; i += LANES<T>) {
            T *const p = this->place(scores, t, i), *const ds = this->place(along, t, i);
            store(p, load(p) * inverse);
            store(ds, load(p) * (load(ds) - mean));
        }
    }

    /// Panel p of `sums += weights^T right`, (keys, wide), with n rows of the right matrix a step apart.
    void collect(const Stage<T>& stage, int64_t p, const Tile<T>& weights, int64_t n, const T* right, int64_t step,
                 T* sums) const {
        for (int64_t m = 0; m < keys; m += PANEL)
            multiply<T, Left::columns>(least(PANEL, keys - m), stage.vectors(p), n, weights.panel(m / PANEL), PANEL,
                                       right, step, sums + m * stage.wide + p * PANEL, stage.wide, true);
    }

    void into_values(const Stage<T>& stage, const Tile<T>& p_of, const Block<T>& g, int64_t n, T* sums) const {
        for (int64_t p = 0; p < panels(stage.width); ++p)
            collect(stage, p, p_of, n, g.data + p * PANEL, g.step, sums);
    }

    /// Gradients of the keys; the normalised rows stay in the tile if the features' gradient is wanted.
    void into_keys(const Stage<T>& stage, const Tile<T>& ds, const Tokens<T>& x, int64_t n, const Workspace& w,
                   T* sums) const {
        const Tile<T> tile{w.tile, stage.block};
        for (int64_t p = 0; p < panels(stage.width); ++p) {
            T* const z = tile.panel(wanted.features ? p : 0);
            fill_panel(x.rows, x.moments, n, p, stage.width, z);
            if (wanted.keys) collect(stage, p, ds, n, z, PANEL, sums);
        }
    }

    /// Gradients of n tokens' features; the scores' scale comes in with the norm's factor.
    void into_features(int64_t s, int64_t b, int64_t first, int64_t n, const Tokens<T>& x, const Block<T>& g,
                       const Workspace& w) const {
        const Stage<T>& stage = stages()[s];
        const Operand& to = wanted.features[s];
        const Tile<T> tile{w.tile, stage.block}, ds{w.along, stage.block}, d{w.d_tile, stage.block};
        const Block<T> k = take(rows_of_sample(call.keys[s], b), 0, keys, 0, stage.width, true, w.flat_keys);
        for (int64_t p = 0; p < panels(stage.width); ++p)
            for (int64_t m = 0; m < keys; m += PANEL)
                multiply<T, Left::panel>(n, stage.vectors(p), least(PANEL, keys - m), ds.panel(m / PANEL), 0,
                                         k.data + m * k.step + p * PANEL, k.step, d.panel(p), PANEL, m > 0);
        for (int64_t t = 0; t < n; ++t) {
            __builtin_memcpy(w.row, g.data + t * g.step, uint64_t(stage.width) * sizeof(T));
            norm_backward(d, tile, t, stage.width, call.norm, stage.scale * x.moments[t].inverse, w.row, true);
            write(w.row, stage.width, at(to, b, first + t), to.dtype);
        }
    }

    /// Write a sample's gradient of keys or of values; the sums become the keys'.
    void finish(int64_t s, int64_t b, T* part, bool of_keys) const {
        const Stage<T>& stage = stages()[s];
        const Operands& list = of_keys ? wanted.keys : wanted.values;
        if (!list) return;
        for (int64_t m = 0; m < keys; ++m) {
            T* const row = part + (of_keys ? m : keys + m) * stage.wide;
            for (int64_t c = 0; of_keys && c < stage.width; ++c) row[c] *= stage.scale;
            write(row, stage.width, at(list[s], b, m), list[s].dtype);
        }
    }

    /// Add up the cuts of each sample: an item for its keys, one for its values.
    void merge_cuts() const {
        Items items(count);
        for (int64_t s = 0; s < count; ++s)
            items.put(s, stages()[s].cuts > 1 ? 2 * stages()[s].batch : 0, stages()[s].cuts * stages()[s].wide);
        for_each(items.total(), 0, [&](int64_t item, char*) {
            const auto found = items.find(item);
            const Stage<T>& stage = stages()[found.entry];
            const int64_t b = found.item / 2, half = keys * stage.wide, elements = 2 * half;
            T* const part = stage.parts + b * stage.cuts * elements;
            T* const sums = part + found.item % 2 * half;
            for (int64_t k = 1; k < stage.cuts; ++k)
                for (int64_t i = 0; i < half; ++i) sums[i] += sums[k * elements + i];
            finish(found.entry, b, part, found.item % 2 == 0);
        });
    }
};

}  // namespace

void inject_backward(const Inject& call, Operands grads, const InjectGradients& wanted) {
    if (in_double(call))
        Backward<double>(call, grads, wanted).run();
    else
        Backward<float>(call, grads, wanted).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
