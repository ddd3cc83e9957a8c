// What both passes of inject share, see inject.cpp: how a stage is cut, a block's rows, scores and their softmax.
#pragma once

#include "matrix.h"
#include "work.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

/// Items that a stage is cut into at least, as long as each has so many tokens, and as many as there are keys: work for
/// many threads from few samples, and sums of gradients that are no longer than what they sum.
constexpr int64_t ITEMS = 16, TOKENS = 512;

/// Tokens of a block at most, and bytes of its rows and scores, for which fewer are taken.
constexpr int64_t BLOCK = 96, BYTES_OF_BLOCK = 160 << 10;

/// Rows that are worked on at a time while as many others are fetched.
constexpr int64_t FEW = 16;

constexpr double LOWEST = -__builtin_inf();

/// How one stage is worked on, and where what its items leave for each other lies.
template <class T>
struct Stage {
    int64_t batch, tokens, width, wide;  // wide: the width filled up to panels
    int64_t block, cuts, cut_tokens;     // tokens of a block; cuts of a sample and tokens of a cut
    T scale;
    T* parts;  // backward, of cut samples: what each cut adds to the gradients of keys and values

    /// Channels of panel p, and vectors of them.
    int64_t channels(int64_t p) const { return least(PANEL, width - p * PANEL); }
    int64_t vectors(int64_t p) const { return divide_up(channels(p), LANES<T>); }
};

template <class T>
Stage<T> planned(const Inject& call, int64_t s) {
    const Operand& x = call.features[s];
    const int64_t keys = call.keys[s].size[1];
    Stage<T> stage{};
    stage.batch = x.size[0], stage.tokens = x.size[1], stage.width = x.size[2];
    stage.wide = panels(stage.width) * PANEL;
    stage.block = BLOCK;
    const int64_t row = int64_t(sizeof(T)) * (stage.wide + panels(keys) * PANEL);
    while (stage.block > BLOCK / 4 && stage.block * row > BYTES_OF_BLOCK) stage.block /= 2;
    const int64_t longest = stage.tokens / most(TOKENS, keys);
    const int64_t cuts = most(1, least(divide_up(ITEMS, most(stage.batch, 1)), longest));
    stage.cut_tokens = round_up(divide_up(stage.tokens, cuts), stage.block);
    stage.cuts = divide_up(stage.tokens, stage.cut_tokens);
    stage.scale = call.scale != call.scale ? T(1) / square_root(T(stage.width)) : T(call.scale);
    return stage;
}

/// The largest of a vector's lanes.
template <class T, int LENGTH>
FASTAV_INLINE T largest(typename Shorter<T, LENGTH>::type v) {
    if constexpr (LENGTH == 2) {
        return v[0] < v[1] ? v[1] : v[0];
    } else {
        typename Shorter<T, LENGTH / 2>::type low, high;
        __builtin_memcpy(&low, &v, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
        return largest<T, LENGTH / 2>(low < high ? high : low);
    }
}

/// Rows of a sample that will be read or written when those at hand are done with, or what lies behind them in memory.
struct Ahead {
    const Operand& x;
    int64_t b, first;

    /// Ask the memory for channels c, c + 1, ... of rows i, i + 1, ...; addresses without memory behind them do no harm.
    ///
    /// Inlined by force: GCC takes a function that does nothing else for one without effect, and drops its calls.
    __attribute__((always_inline)) void fetch(int64_t i, int64_t rows, int64_t c, int64_t channels) const {
        const int64_t element = size_of(x.dtype), step = x.stride[1] * element;
        uintptr_t row = uintptr_t(x.data) + uintptr_t((b * x.stride[0] + c) * element + (first + i) * step);
        for (int64_t n = 0; n < rows; ++n, row += uintptr_t(step))
            for (int64_t byte = 0; byte < channels * element; byte += 64)
                __builtin_prefetch(reinterpret_cast<const void*>(row + uintptr_t(byte)));
    }
};

/// A sample's rows, (N, D) or (M, D) of a stage.
FASTAV_INLINE Rows rows_of_sample(const Operand& x, int64_t b) {
    return {at(x, b), x.dtype, x.size[1], x.size[1], x.size[2], 0, x.stride[1], x.stride[2]};
}

/// A block's rows in T, where they lie or in work memory, and what each is shifted and multiplied by.
template <class T>
struct Tokens {
    Block<T> block;
    const T* rows[BLOCK];
    Moments<T> moments[BLOCK];
};

/// What both passes do.
template <class T>
class Pass {
protected:
    const Inject& call;
    const int64_t count, keys, lanes;            // lanes: keys filled up to vectors
    int64_t widest = 0, widest_room = 0;         // channels of a row filled up to panels, elements that it takes
    int64_t largest_block = 0, most_tokens = 0;  // elements and tokens of a block
    Scratch plan;

    explicit Pass(const Inject& of)
        : call(of),
          count(of.features.count),
          keys(of.keys[0].size[1]),
          lanes(filled<T>(keys)),
          plan(count * int64_t(sizeof(Stage<T>))) {
        for (int64_t s = 0; s < count; ++s) {
            const Stage<T> stage = stages()[s] = planned<T>(of, s);
            widest = most(widest, stage.wide);
            widest_room = most(widest_room, room_for_row(stage));
            largest_block = most(largest_block, stage.block * room_for_row(stage));
            most_tokens = most(most_tokens, stage.block);
        }
    }

    Stage<T>* stages() const { return reinterpret_cast<Stage<T>*>(plan.data()); }

    /// Elements of a tile with a token's scores in each row.
    int64_t score_elements() const { return most_tokens * panels(lanes) * PANEL; }

    /// An item for each cut of each sample: calls `body(stage's number, sample, cut, workspace)`.
    template <class F>
    void for_cuts(int64_t bytes, const F& body) const {
        Items items(count);
        for (int64_t s = 0; s < count; ++s)
            items.put(s, stages()[s].batch * stages()[s].cuts, stages()[s].cut_tokens * stages()[s].wide);
        for_each(items.total(), bytes, [&](int64_t item, char* from) {
            const auto found = items.find(item);
            const int64_t cuts = stages()[found.entry].cuts;
            body(found.entry, found.item / cuts, found.item % cuts, from);
        });
    }

    /// Calls `body(first, n)` for each block of n tokens of a cut.
    template <class F>
    static void for_blocks(const Stage<T>& stage, int64_t cut, const F& body) {
        const int64_t end = least(stage.tokens, (cut + 1) * stage.cut_tokens);
        for (int64_t first = cut * stage.cut_tokens; first < end; first += stage.block)
            body(first, least(stage.block, end - first));
    }

    /// Elements that a row takes in work memory.
    static int64_t room_for_row(const Stage<T>& stage) { return most(stage.wide, spacing<T>(stage.width)); }

    /// A sample's keys or values times `factor`, one in each lane: channel c of row m at `to[c * lanes + m]`, zeros
    /// beyond the rows.
    void turn_rows(const Operand& x, int64_t b, T factor, T* to) const {
        arrange(Matrix{at(x, b), x.dtype, x.size[2], keys, x.stride[2], x.stride[1]}, 0, x.size[2], to, lanes);
        if (factor == T(1)) return;
        for (int64_t i = 0; i < x.size[2] * lanes; i += LANES<T>) store(to + i, load(to + i) * factor);
    }

    /// Read n tokens' features; `room` for their rows.
    void read_tokens(const Stage<T>& stage, const Operand& x, int64_t b, int64_t first, int64_t n, T* room,
                     Tokens<T>& tokens) const {
        tokens.block = take(rows_of_sample(x, b), first, n, 0, stage.width, false, room);
        for (int64_t t = 0; t < n; ++t) {
            tokens.rows[t] = tokens.block.data + t * tokens.block.step;
            tokens.moments[t] = moments(tokens.rows[t], stage.width, call.norm, T(call.eps));
        }
    }

    /// `scores := norm(x) turned`, (n, lanes); meanwhile `ahead` is fetched. `panel` holds FEW rows of one.
    void score(const Stage<T>& stage, const Tokens<T>& x, int64_t n, const T* turned, const Tile<T>& scores,
               const Ahead& ahead, T* panel) const {
        for (int64_t p = 0; p < panels(stage.width); ++p) {
            for (int64_t t = 0; t < n; t += FEW) {
                const int64_t few = least(FEW, n - t);
                ahead.fetch(t, few, p * PANEL, stage.channels(p));
                fill_panel(x.rows + t, x.moments + t, few, p, stage.width, panel);
                for (int64_t m = 0; m < lanes; m += PANEL)
                    multiply<T, Left::panel>(few, least(PANEL, lanes - m) / LANES<T>, stage.channels(p), panel, 0,
                                             turned + p * PANEL * lanes + m, lanes, scores.row(m / PANEL, t), PANEL,
                                             p > 0);
            }
        }
    }

    /// Where vector i of a token's scores lies.
    static T* place(const Tile<T>& scores, int64_t t, int64_t i) { return scores.row(i / PANEL, t) + i % PANEL; }

    /// Scores of a token become powers, zeros beyond the keys; gives what makes them a softmax, one by their sum.
    T powers(const Tile<T>& scores, int64_t t) const {
        const auto score_at = [&](int64_t i) {
            const Vector<T> found = load(place(scores, t, i));
            return i + LANES<T> <= keys ? found : first_lanes<T>(keys - i) ? found : splat<T>(T(LOWEST));
        };
        Vector<T> tops = splat<T>(T(LOWEST)), total{};
        for (int64_t i = 0; i < lanes; i += LANES<T>) tops = larger<T>(tops, score_at(i));
        const Vector<T> top = splat<T>(largest<T, LANES<T>>(tops));
        for (int64_t i = 0; i < lanes; i += LANES<T>) {
            const Vector<T> power = exp<T>(score_at(i) - top);
            store(place(scores, t, i), power);
            total += power;
        }
        return T(1) / sum<T>(total);
    }
};

/// Whether to compute in double.
FASTAV_INLINE bool in_double(const Inject& call) {
    return call.features[0].dtype == Dtype::float64 || call.keys[0].dtype == Dtype::float64 ||
           call.values[0].dtype == Dtype::float64;
}

}  // namespace
}  // namespace FASTAV_PATH
}  // namespace fastav
