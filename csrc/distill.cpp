// Distil: `softmax_n(scale q x_hat^T) x_hat` for every tap, see fastav/ops/distill.py.
//
// A work item is one sample of one tap, or a cut of it where samples are few; how a tap is cut depends on that tap
// alone. An item reads its tokens once, a block of rows at a time: normalised into a tile that stays in the cache,
// multiplied with the queries, weighed by the running softmax, added up. Masked tokens are not read at all.
#include "distill.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

template <class T>
class Forward : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::count, Base::rows, Base::lanes, Base::taps;
    const Operands outputs, sums;

    /// A softmax so far: the largest score and the sum of powers of each row, and the rows' sums.
    struct State {
        T *top, *total, *pooled;

        static int64_t elements(int64_t rows, int64_t lanes, int64_t wide) { return 2 * lanes + rows * wide; }
        State(T* memory, int64_t lanes) : top(memory), total(memory + lanes), pooled(memory + 2 * lanes) {}
    };

public:
    Forward(const Distill& of, Operands out, Operands kept) : Base(of), outputs(out), sums(kept) {}

    void run() {
        const Scratch memory = this->shared_memory([&](Cutter& cutter, Tap<T>& tap) {
            tap.packed = cutter.array<T>(tap.shared ? tap.wide * lanes : 0);
            const int64_t parts = tap.cuts > 1 ? tap.batch * tap.cuts : 0;
            tap.parts = cutter.array<T>(parts * State::elements(rows, lanes, tap.wide));
        });
        this->pack_shared();
        const Items items = this->cut_items();
        Cutter workspace;
        cut(workspace);
        for_each(items.total(), workspace.used(), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const int64_t cuts = taps()[found.entry].cuts;
            run_item(found.entry, found.item / cuts, found.item % cuts, from);
        });
        merge_cuts();
    }

private:
    struct Workspace {
        T *tile, *room, *row, *w, *packed, *scores, *state;
    };

    Workspace cut(Cutter& cutter) const {
        Workspace w;
        w.tile = cutter.array<T>(BLOCK * this->widest);
        w.room = cutter.array<T>(this->room());
        w.row = cutter.array<T>(LANES<T> * this->widest);
        w.w = cutter.array<T>(this->widest);
        w.packed = cutter.array<T>(this->widest * lanes);
        w.scores = cutter.array<T>(BLOCK * lanes);
        w.state = cutter.array<T>(State::elements(rows, lanes, this->widest));
        return w;
    }

    void run_item(int64_t g, int64_t b, int64_t cut_index, char* from) const {
        const Tap<T>& tap = taps()[g];
        Cutter cutter(from);
        const Workspace w = cut(cutter);
        const T* packed = tap.packed;
        if (!tap.shared) {
            read_affine(call.weight, g, tap.width, T(1), w.w);
            pack(call.queries[g], b, rows, lanes, tap.scale, w.w, w.row, w.packed, lanes);
            packed = w.packed;
        }
        const int64_t elements = State::elements(rows, lanes, tap.wide);
        State state(tap.cuts > 1 ? tap.parts + (b * tap.cuts + cut_index) * elements : w.state, lanes);
        for (int64_t r = 0; r < lanes; ++r) state.top[r] = T(LOWEST), state.total[r] = 0;
        bool first = true;
        const Tile<T> z{w.tile, BLOCK};
        this->blocks(g, b, cut_index, w.room, [&](const Tokens<T>& block, Ahead& ahead) {
            ahead.spread(this->products(tap, block.count, lanes, 1));
            this->score(tap, block, z, packed, lanes, w.scores, ahead);
            for (int64_t r = 0; r < lanes; r += LANES<T>) advance(tap, state, w.scores + r, block.count, r, first);
            this->pool(tap, block, z, w.scores, lanes, state.pooled, !first, ahead);
            first = false;
        });
        if (tap.cuts == 1) finish(g, b, state, w.w, w.row);
    }

    /// Scores of n tokens become powers, for one vector of rows; what is in `state` is scaled to the new largest score.
    void advance(const Tap<T>& tap, State& state, T* scores, int64_t n, int64_t from, bool first) const {
        const Vector<T> before = load(state.top + from);
        Vector<T> top = before;
        for (int64_t t = 0; t < n; ++t) top = larger<T>(top, load(scores + t * lanes));
        Vector<T> total{};
        for (int64_t t = 0; t < n; ++t) {
            const Vector<T> power = exp<T>(load(scores + t * lanes) - top);
            store(scores + t * lanes, power);
            total += power;
        }
        store(state.top + from, top);
        if (first) return store(state.total + from, total);
        T factors[LANES<T>];
        store(factors, exp<T>(before - top));
        store(state.total + from, load(state.total + from) * load(factors) + total);
        for (int64_t r = from; r < least(rows, from + LANES<T>); ++r)
            if (factors[r - from] != T(1)) scale_row(state.pooled + r * tap.wide, tap.wide, factors[r - from]);
    }

    static void scale_row(T* row, int64_t wide, T factor) {
        for (int64_t c = 0; c < wide; c += LANES<T>) store(row + c, load(row + c) * factor);
    }

    /// Write a sample's outputs and log-sum-exps.
    void finish(int64_t g, int64_t b, const State& state, T* w, T* room) const {
        const Tap<T>& tap = taps()[g];
        T *const bias = room, *const row = room + tap.wide;
        read_affine(call.weight, g, tap.width, T(1), w);
        read_affine(call.bias, g, tap.width, T(0), bias);
        for (int64_t r = 0; r < rows; ++r) {
            const bool any = state.total[r] != T(0);
            const T inverse = T(1) / state.total[r];
            const T* const pooled = state.pooled + r * tap.wide;
            for (int64_t c = 0; c < tap.width; ++c) row[c] = pooled[c] * inverse * w[c] + bias[c];
            for (int64_t c = 0; c < tap.width && !any; ++c) row[c] = T(0);
            write(row, tap.width, at(outputs[g], b, r), outputs[g].dtype);
            const T sum = any ? state.top[r] + T(__builtin_log(double(state.total[r]))) : T(LOWEST);
            write(&sum, 1, at(sums[g], b, r), sums[g].dtype);
        }
    }

    /// Bring the cuts of each sample together, in order.
    void merge_cuts() const {
        Items items(count);
        for (int64_t g = 0; g < count; ++g) items.put(g, taps()[g].cuts > 1 ? taps()[g].batch : 0, taps()[g].wide);
        for_each(items.total(), 3 * this->widest * int64_t(sizeof(T)), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const Tap<T>& tap = taps()[found.entry];
            Cutter cutter(from);
            T *w = cutter.array<T>(tap.wide), *room = cutter.array<T>(2 * tap.wide);
            const int64_t elements = State::elements(rows, lanes, tap.wide);
            T* const parts = tap.parts + found.item * tap.cuts * elements;
            State all(parts, lanes);
            for (int64_t k = 1; k < tap.cuts; ++k) merge(tap, all, State(parts + k * elements, lanes));
            finish(found.entry, found.item, all, w, room);
        });
    }

    void merge(const Tap<T>& tap, State& into, const State& other) const {
        for (int64_t r = 0; r < rows; ++r) {
            if (other.total[r] == T(0)) continue;  // no keys: its sums were never written
            const bool none = into.total[r] == T(0);
            const T top = none || into.top[r] < other.top[r] ? other.top[r] : into.top[r];
            const T mine = none ? T(0) : exp<T>(splat(into.top[r] - top))[0];
            const T its = exp<T>(splat(other.top[r] - top))[0];
            into.top[r] = top;
            into.total[r] = (none ? T(0) : into.total[r] * mine) + other.total[r] * its;
            T* const to = into.pooled + r * tap.wide;
            const T* const from = other.pooled + r * tap.wide;
            for (int64_t c = 0; c < tap.width; ++c) to[c] = (none ? T(0) : to[c] * mine) + from[c] * its;
        }
    }
};

}  // namespace

void distill_forward(const Distill& call, Operands outputs, Operands sums) {
    if (in_double(call))
        Forward<double>(call, outputs, sums).run();
    else
        Forward<float>(call, outputs, sums).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
