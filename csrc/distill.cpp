// Distil: `softmax_n(scale q x_hat^T) x_hat` for every tap, see fastav/ops/distill.py.
//
// A work item is one sample of one tap, or a cut of it where samples are few; how a tap is cut depends on that tap
// alone. An item reads its tokens once, a block of rows at a time: normalised into a tile that stays in the cache,
// multiplied with the queries, weighed by the running softmax, added up. Masked tokens are not read at all.
//
// With z the normalised rows without affine part, w and b that part, q' = scale q w and g' = g w, backward takes p from
// the saved log-sum-exp:
//     ds = p (g' z^T - delta)    delta_r = g_r . (o_r - b)    S_r = sum_n ds_rn
//     dq_r = scale (w (ds z)_r - S_r (o_r - b))    db = sum_r g_r
//     dw = sum_r (p z)_r g_r + scale q_r ((ds z)_r - S_r (p z)_r)    dz_n = sum_r ds_rn q'_r + p_rn g'_r
// S is zero but for what o lost when it was rounded to its dtype and delta with it; its terms take that out again.
#include "rows.h"
#include "work.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

/// Items that a tap is cut into at least, as long as each has so many tokens: work for many threads from few samples.
constexpr int64_t ITEMS = 16, TOKENS = 512;

/// Tokens of a tile at most: whole groups of TOGETHER, and of the matrix product's rows of a single or double vector.
constexpr int64_t BLOCK = 96;

/// Rows that are fetched at a time while as many are multiplied: more at once and the requests wait for each other.
constexpr int64_t FETCHED = 16;

constexpr double LOWEST = -__builtin_inf();

/// How one tap is worked on, and where what its items leave for each other lies.
template <class T>
struct Tap {
    int64_t batch, tokens, width, wide;  // wide: the width filled up to panels
    int64_t block, cuts, cut_tokens;     // tokens of a tile; cuts of a sample and tokens of a cut
    bool shared;                         // queries
    T scale;
    T* packed;  // shared queries as `pack` lays them out
    T* parts;   // of cut samples, one `Part` for each cut
    T* sums;    // backward, what each sample adds to gradients that are summed over the batch
};

template <class T>
Tap<T> planned(const Distill& call, int64_t g) {
    const Operand& x = call.taps[g];
    Tap<T> tap{};
    tap.batch = x.size[0], tap.tokens = x.size[1], tap.width = x.size[2];
    tap.wide = panels(tap.width) * PANEL;
    tap.block = tap.wide <= 1024 ? BLOCK : BLOCK / 2;  // a tile of float32 fits 400 kB of second-level cache up to 2,048 channels
    const int64_t cuts = most(1, least(divide_up(ITEMS, most(tap.batch, 1)), tap.tokens / TOKENS));
    tap.cut_tokens = round_up(divide_up(tap.tokens, cuts), tap.block);
    tap.cuts = divide_up(tap.tokens, tap.cut_tokens);
    tap.shared = call.queries[g].dim == 2;
    tap.scale = call.scale != call.scale ? T(1) / square_root(T(tap.width)) : T(call.scale);
    return tap;
}

/// Row r of sample b: of (B, R, D), or of (R, D) whatever the sample.
template <class T>
void read_row(const Operand& x, int64_t b, int64_t r, T* to) {
    read(x.dim == 2 ? at(x, r) : at(x, b, r), x.dtype, x.stride[x.dim - 1], x.size[x.dim - 1], to);
}

/// Entry g of the norm's affine part, in T; `otherwise` where there is none.
template <class T>
void read_affine(const Operands& list, int64_t g, int64_t width, T otherwise, T* to) {
    if (list)
        read(list[g].data, list[g].dtype, list[g].stride[0], width, to);
    else
        for (int64_t c = 0; c < width; ++c) to[c] = otherwise;
}

/// `factor w` times the rows of a sample, transposed: channel c of row r at `to[c * step + r]`, zeros beyond the rows.
template <class T>
void pack(const Operand& x, int64_t b, int64_t rows, int64_t lanes, T factor, const T* w, T* room, T* to, int64_t step) {
    const int64_t width = x.size[x.dim - 1];
    for (int64_t r = 0; r < lanes; ++r) {
        if (r < rows) read_row(x, b, r, room);
        for (int64_t c = 0; c < width; ++c) to[c * step + r] = r < rows ? factor * w[c] * room[c] : T(0);
    }
}

/// The rows in memory behind a block's: most likely the next to be read, by this item or the next one.
struct Ahead {
    const char* from;
    int64_t step, element;  // bytes

    /// Ask the memory for channels c, c + 1, ... of rows i, i + 1, ...; addresses without memory behind them do no harm.
    void fetch(int64_t i, int64_t rows, int64_t c, int64_t channels) const {
        for (int64_t k = i; k < i + rows; ++k)
            for (int64_t byte = c * element; byte < (c + channels) * element; byte += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(uintptr_t(from) + uintptr_t(k * step + byte)));
    }
};

/// What both passes share: the taps, their sizes, and how tokens come into a tile.
template <class T>
class Pass {
protected:
    const Distill& call;
    const int64_t count, rows, lanes;  // lanes: rows filled up to vectors
    int64_t widest = 0, largest = 0;   // channels of a row, elements of a tile
    Scratch plan;

    explicit Pass(const Distill& of)
        : call(of),
          count(of.taps.count),
          rows(of.queries[0].size[of.queries[0].dim - 2]),
          lanes(round_up(rows, LANES<T>)),
          plan(count * int64_t(sizeof(Tap<T>))) {
        for (int64_t g = 0; g < count; ++g) {
            taps()[g] = planned<T>(of, g);
            widest = most(widest, taps()[g].wide);
            largest = most(largest, taps()[g].block * taps()[g].wide);
        }
    }

    Tap<T>* taps() const { return reinterpret_cast<Tap<T>*>(plan.data()); }

    /// Cut what every tap wants from one piece of memory.
    template <class F>
    Scratch shared_memory(const F& cut) const {
        Cutter sizes;
        for (int64_t g = 0; g < count; ++g) cut(sizes, taps()[g]);
        Scratch memory(sizes.used());
        Cutter arrays(memory.data());
        for (int64_t g = 0; g < count; ++g) cut(arrays, taps()[g]);
        return memory;
    }

    void pack_shared() const {
        Items items(count);
        for (int64_t g = 0; g < count; ++g) items.put(g, taps()[g].shared, taps()[g].wide);
        for_each(items.total(), 2 * widest * int64_t(sizeof(T)), [&](int64_t item, char* memory) {
            const int64_t g = items.find(item).entry;
            const Tap<T>& tap = taps()[g];
            Cutter cutter(memory);
            T *w = cutter.array<T>(tap.wide), *room = cutter.array<T>(tap.wide);
            read_affine(call.weight, g, tap.width, T(1), w);
            pack(call.queries[g], 0, rows, lanes, tap.scale, w, room, tap.packed, lanes);
        });
    }

    /// An item for each cut of each sample.
    Items cut_items() const {
        Items items(count);
        for (int64_t g = 0; g < count; ++g)
            items.put(g, taps()[g].batch * taps()[g].cuts, taps()[g].cut_tokens * taps()[g].wide);
        return items;
    }

    /// Read a cut's tokens block by block, and call `body(n)` for each n tokens that the tile then holds. `where` and
    /// `inverse`, if given, get each token's place in the sample and what its row was multiplied by.
    template <class F>
    void blocks(int64_t g, int64_t b, int64_t cut, const Tile<T>& tile, T* room, int64_t* where, T* inverse,
                const F& body) const {
        const Tap<T>& tap = taps()[g];
        const Operand& x = call.taps[g];
        const int64_t end = least(tap.tokens, (cut + 1) * tap.cut_tokens);
        int64_t held = 0, waiting = 0;
        const int64_t element = size_of(x.dtype);
        const auto behind = [&](int64_t n) {
            return Ahead{at(x, b, n - 1) + x.stride[1] * element, x.stride[1] * element, element};
        };
        const T* together[TOGETHER];
        const auto take = [&] {
            Moments<T> found[TOGETHER];
            if (waiting == TOGETHER)
                fill_rows<T, TOGETHER>(tile, held, together, tap.width, call.norm, T(call.eps), found);
            else
                for (int64_t i = 0; i < waiting; ++i)
                    found[i] = fill(tile, held + i, together[i], tap.width, call.norm, T(call.eps));
            for (int64_t i = 0; inverse && i < waiting; ++i) inverse[held + i] = found[i].inverse;
            held += waiting, waiting = 0;
        };
        for (int64_t n = cut * tap.cut_tokens; n < end; ++n) {
            if (call.key_mask && !*at(call.key_mask[g], b, n)) continue;
            if (where) where[held + waiting] = n;
            together[waiting] = dense(at(x, b, n), x.dtype, x.stride[2], tap.width, room + waiting * tap.wide);
            if (++waiting == TOGETHER) take();
            if (held == tile.tokens) body(held, behind(n + 1)), held = 0;
        }
        take();
        if (held) body(held, behind(end));
    }

    /// `scores := tile right`, (n, width), right (wide, width); meanwhile the next block is fetched.
    void score(const Tap<T>& tap, const Tile<T>& tile, int64_t n, const T* right, int64_t width, T* scores,
               const Ahead& ahead) const {
        for (int64_t p = 0; p < panels(tap.width); ++p) {
            const int64_t depth = least(PANEL, tap.width - p * PANEL);
            for (int64_t i = 0; i < n; i += FETCHED) {
                const int64_t few = least(FETCHED, n - i);
                ahead.fetch(i, few, p * PANEL, depth);
                multiply<T, Left::panel>(few, width / LANES<T>, depth, tile.row(p, i), 0, right + p * PANEL * width,
                                         width, scores + i * width, width, p > 0);
            }
        }
    }

    /// `out (+)= weights^T tile`, (rows, wide), weights (n, step).
    void pool(const Tap<T>& tap, const Tile<T>& tile, int64_t n, const T* weights, int64_t step, T* out,
              bool add) const {
        for (int64_t p = 0; p < panels(tap.width); ++p)
            multiply<T, Left::columns>(rows, divide_up(least(PANEL, tap.width - p * PANEL), LANES<T>), n, weights, step,
                                       tile.panel(p), PANEL, out + p * PANEL, tap.wide, add);
    }
};

// ---- forward -------------------------------------------------------------------------------------------------------

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
        cut(workspace, nullptr);
        for_each(items.total(), workspace.used(), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const int64_t cuts = taps()[found.entry].cuts;
            run_item(found.entry, found.item / cuts, found.item % cuts, from);
        });
        merge_cuts();
    }

private:
    struct Workspace {
        T *tile, *room, *w, *packed, *scores, *state;
    };

    Workspace cut(Cutter& cutter, const char*) const {
        Workspace w;
        w.tile = cutter.array<T>(this->largest);
        w.room = cutter.array<T>(TOGETHER * this->widest);
        w.w = cutter.array<T>(this->widest);
        w.packed = cutter.array<T>(this->widest * lanes);
        w.scores = cutter.array<T>(BLOCK * lanes);
        w.state = cutter.array<T>(State::elements(rows, lanes, this->widest));
        return w;
    }

    void run_item(int64_t g, int64_t b, int64_t cut_index, char* from) const {
        const Tap<T>& tap = taps()[g];
        Cutter cutter(from);
        const Workspace w = cut(cutter, from);
        const Tile<T> tile{w.tile, tap.block};
        const T* packed = tap.packed;
        if (!tap.shared) {
            read_affine(call.weight, g, tap.width, T(1), w.w);
            pack(call.queries[g], b, rows, lanes, tap.scale, w.w, w.room, w.packed, lanes);
            packed = w.packed;
        }
        const int64_t elements = State::elements(rows, lanes, tap.wide);
        State state(tap.cuts > 1 ? tap.parts + (b * tap.cuts + cut_index) * elements : w.state, lanes);
        for (int64_t r = 0; r < lanes; ++r) state.top[r] = T(LOWEST), state.total[r] = 0;
        bool first = true;
        this->blocks(g, b, cut_index, tile, w.room, nullptr, nullptr, [&](int64_t n, const Ahead& ahead) {
            this->score(tap, tile, n, packed, lanes, w.scores, ahead);
            for (int64_t r = 0; r < lanes; r += LANES<T>) advance(tap, state, w.scores + r, n, r, first);
            this->pool(tap, tile, n, w.scores, lanes, state.pooled, !first);
            first = false;
        });
        if (tap.cuts == 1) finish(g, b, state, w.w, w.room);
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

// ---- backward ------------------------------------------------------------------------------------------------------

template <class T>
class Backward : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::count, Base::rows, Base::lanes, Base::taps;
    const Operands grads, outputs, sums;
    const DistillGradients& wanted;

    /// What a cut adds up: `ds z` and, for the norm's weight, `p z`, both (rows, wide), and S (lanes).
    struct Part {
        T *ds_z, *p_z, *s;

        static int64_t elements(int64_t rows, int64_t lanes, int64_t wide) { return 2 * rows * wide + lanes; }
        Part(T* memory, int64_t rows, int64_t wide)
            : ds_z(memory), p_z(memory + rows * wide), s(memory + 2 * rows * wide) {}
    };

    /// What a sample adds to shared gradients: queries (rows, wide), weight (wide), bias (wide).
    int64_t sum_elements(const Tap<T>& tap) const { return (rows + 2) * tap.wide; }

public:
    Backward(const Distill& of, Operands upstream, Operands out, Operands kept, const DistillGradients& gradients)
        : Base(of), grads(upstream), outputs(out), sums(kept), wanted(gradients) {}

    void run() {
        const Scratch memory = this->shared_memory([&](Cutter& cutter, Tap<T>& tap) {
            tap.packed = cutter.array<T>(tap.shared ? tap.wide * lanes : 0);
            const int64_t parts = tap.cuts > 1 ? tap.batch * tap.cuts : 0;
            tap.parts = cutter.array<T>(parts * Part::elements(rows, lanes, tap.wide));
            tap.sums = cutter.array<T>(tap.batch * sum_elements(tap));
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
        sum_samples();
    }

private:
    struct Workspace {
        T *tile, *room, *w, *packed, *scores, *part, *delta, *top;
        T *slopes, *turned, *left, *d_tile, *inverse;  // for the taps' own gradient
        int64_t* where;
    };

    Workspace cut(Cutter& cutter) const {
        const bool taps_too = bool(wanted.taps);
        const int64_t widest = this->widest;
        Workspace w;
        w.tile = cutter.array<T>(this->largest);
        w.room = cutter.array<T>(TOGETHER * widest);
        w.w = cutter.array<T>(widest);
        w.packed = cutter.array<T>(widest * 2 * lanes);
        w.scores = cutter.array<T>(BLOCK * 2 * lanes);
        w.part = cutter.array<T>(Part::elements(rows, lanes, widest));
        w.delta = cutter.array<T>(lanes);
        w.top = cutter.array<T>(lanes);
        w.turned = cutter.array<T>(taps_too ? 2 * lanes * widest : 0);
        w.left = cutter.array<T>(taps_too ? 2 * lanes * BLOCK : 0);
        w.d_tile = cutter.array<T>(taps_too ? this->largest : 0);
        w.inverse = cutter.array<T>(BLOCK);
        w.where = cutter.array<int64_t>(BLOCK);
        return w;
    }

    void run_item(int64_t g, int64_t b, int64_t cut_index, char* from) const {
        const Tap<T>& tap = taps()[g];
        Cutter cutter(from);
        const Workspace w = cut(cutter);
        const Tile<T> tile{w.tile, tap.block};
        prepare(g, b, w);
        const bool whole = tap.cuts == 1;
        const int64_t elements = Part::elements(rows, lanes, tap.wide);
        const Part part(whole ? w.part : tap.parts + (b * tap.cuts + cut_index) * elements, rows, tap.wide);
        for (int64_t r = 0; r < lanes; ++r) part.s[r] = T(0);
        if (wanted.taps) clear_tokens(g, b, cut_index);
        bool first = true;
        this->blocks(g, b, cut_index, tile, w.room, w.where, w.inverse, [&](int64_t n, const Ahead& ahead) {
            this->score(tap, tile, n, w.packed, 2 * lanes, w.scores, ahead);
            for (int64_t r = 0; r < lanes; r += LANES<T>) slopes(w, n, r, part.s + r);
            if (wanted.queries || wanted.weight) this->pool(tap, tile, n, w.scores, 2 * lanes, part.ds_z, !first);
            if (wanted.weight) this->pool(tap, tile, n, w.scores + lanes, 2 * lanes, part.p_z, !first);
            if (wanted.taps) into_taps(g, b, tile, n, w);
            first = false;
        });
        if (first || !wanted.weight)  // what no block has written
            for (int64_t i = first ? 0 : rows * tap.wide; i < 2 * rows * tap.wide; ++i) part.ds_z[i] = T(0);
        if (whole) finish(g, b, part, w.w, w.room);
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
            pack(call.queries[g], b, rows, lanes, tap.scale, w.w, w.room, w.packed, 2 * lanes);
        pack(grads[g], b, rows, lanes, T(1), w.w, w.room, w.packed + lanes, 2 * lanes);
        T *const centred = w.room, *const grad = w.room + tap.wide, *const bias = w.room + 2 * tap.wide;
        read_affine(call.bias, g, tap.width, T(0), bias);
        for (int64_t r = 0; r < lanes; ++r) {
            w.top[r] = w.delta[r] = T(0);
            if (r >= rows) continue;
            w.top[r] = log_sum(g, b, r);
            centre_output(g, b, r, bias, centred);
            read_row(grads[g], b, r, grad);
            w.delta[r] = dot(grad, centred, tap.width);
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
        read_row(outputs[g], b, r, to);
        for (int64_t c = 0; c < taps()[g].width; ++c) to[c] -= bias[c];
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

    /// Gradients of n tokens of the tap itself.
    void into_taps(int64_t g, int64_t b, const Tile<T>& tile, int64_t n, const Workspace& w) const {
        const Tap<T>& tap = taps()[g];
        for (int64_t t = 0; t < n; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
                w.left[r * n + t] = w.scores[t * 2 * lanes + r];
                w.left[(rows + r) * n + t] = w.scores[t * 2 * lanes + lanes + r];
            }
        }
        const Tile<T> d{w.d_tile, tap.block};
        for (int64_t p = 0; p < panels(tap.width); ++p)
            multiply<T, Left::columns>(n, PANEL / LANES<T>, 2 * rows, w.left, n, w.turned + p * PANEL, tap.wide,
                                       d.panel(p), PANEL, false);
        for (int64_t t = 0; t < n; ++t) {
            norm_backward(d, tile, t, tap.width, call.norm, w.inverse[t], w.room);
            write(w.room, tap.width, at(wanted.taps[g], b, w.where[t]), wanted.taps[g].dtype);
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
        for_each(items.total(), 3 * this->widest * int64_t(sizeof(T)), [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const Tap<T>& tap = taps()[found.entry];
            Cutter cutter(from);
            T *w = cutter.array<T>(tap.wide), *room = cutter.array<T>(2 * tap.wide);
            const int64_t elements = Part::elements(rows, lanes, tap.wide);
            T* const parts = tap.parts + found.item * tap.cuts * elements;
            for (int64_t k = 1; k < tap.cuts; ++k)
                for (int64_t i = 0; i < elements; ++i) parts[i] += parts[k * elements + i];
            read_affine(call.weight, found.entry, tap.width, T(1), w);
            finish(found.entry, found.item, Part(parts, rows, tap.wide), w, room);
        });
    }

    /// What a sample adds to the gradients; those of its own queries are written.
    void finish(int64_t g, int64_t b, const Part& part, const T* w, T* room) const {
        const Tap<T>& tap = taps()[g];
        T* const d_queries = tap.sums + b * sum_elements(tap);
        T *const d_weight = d_queries + rows * tap.wide, *const d_bias = d_weight + tap.wide;
        T *const row = room, *const bias = room + tap.wide;
        const bool rounded = size_of(outputs[g].dtype) < int64_t(sizeof(T));  // else S is as good as zero
        read_affine(call.bias, g, tap.width, T(0), bias);
        for (int64_t c = 0; c < tap.wide; ++c) d_weight[c] = d_bias[c] = T(0);
        for (int64_t r = 0; r < rows; ++r) {
            const T s = part.s[r], tau = tap.scale;
            const T *const ds_z = part.ds_z + r * tap.wide, *const p_z = part.p_z + r * tap.wide;
            if (wanted.queries) {
                T* const to = tap.shared ? d_queries + r * tap.wide : row;
                if (rounded) centre_output(g, b, r, bias, row);
                for (int64_t c = 0; c < tap.width; ++c) to[c] = tau * (w[c] * ds_z[c] - (rounded ? s * row[c] : T(0)));
                if (!tap.shared) write(to, tap.width, at(wanted.queries[g], b, r), wanted.queries[g].dtype);
            }
            if (wanted.weight) {
                read_row(call.queries[g], b, r, row);
                for (int64_t c = 0; c < tap.width; ++c) d_weight[c] += tau * row[c] * (ds_z[c] - (rounded ? s * p_z[c] : T(0)));
            }
            const Operand& grad = grads[g];
            const T* const up = dense(at(grad, b, r), grad.dtype, grad.stride[2], tap.width, row);
            for (int64_t c = 0; c < tap.width && wanted.weight; ++c) d_weight[c] += p_z[c] * up[c];
            if (wanted.bias && log_sum(g, b, r) != T(LOWEST))
                for (int64_t c = 0; c < tap.width; ++c) d_bias[c] += up[c];
        }
    }

    /// Gradients of what the samples share: each row's sum over the batch, in order.
    void sum_samples() const {
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
            for (int64_t b = 0; b < tap.batch; ++b) {
                const T* const its = tap.sums + b * sum_elements(tap) + row * tap.wide;
                for (int64_t c = 0; c < tap.width; ++c) total[c] += its[c];
            }
            write(total, tap.width, row < rows ? at(list[g], row) : list[g].data, list[g].dtype);
        });
    }
};

bool in_double(const Distill& call) {
    return call.taps[0].dtype == Dtype::float64 || call.queries[0].dtype == Dtype::float64;
}

}  // namespace

void distill_forward(const Distill& call, Operands outputs, Operands sums) {
    if (in_double(call))
        Forward<double>(call, outputs, sums).run();
    else
        Forward<float>(call, outputs, sums).run();
}

void distill_backward(const Distill& call, Operands grads, Operands outputs, Operands sums,
                      const DistillGradients& wanted) {
    if (in_double(call))
        Backward<double>(call, grads, outputs, sums, wanted).run();
    else
        Backward<float>(call, grads, outputs, sums, wanted).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
