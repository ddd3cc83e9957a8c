// What both passes of distill share: how taps are cut into work, and how their tokens come into tiles.
#pragma once

#include "rows.h"
#include "work.h"

namespace fastav {
namespace FASTAV_PATH {

/// Items that a tap is cut into at least, as long as each has so many tokens: work for many threads from few samples.
/// Of many samples, items join as many as leave so many items: each adds into memory of its own.
constexpr int64_t ITEMS = 16, TOKENS = 512;

/// Tokens of a block: whole tiles of the matrix product, of one vector and of two. A panel of them, their scores and a
/// panel of queries fit the first-level cache, their rows the second.
constexpr int64_t BLOCK = 48;

/// Rows that are fetched at a time while as many are multiplied: more at once and the requests wait for each other.
constexpr int64_t FETCHED = 16;

constexpr double LOWEST = -__builtin_inf();

/// How one tap is worked on, and where what its items leave for each other lies.
template <class T>
struct Tap {
    int64_t batch, tokens, width, wide;  // wide: the width filled up to panels
    int64_t cuts, cut_tokens;            // of a sample, where samples are few
    int64_t run;                         // samples of a backward item, where they are many
    bool shared, recovers;               // queries; backward, see `recovers`
    T scale;
    T* packed;  // shared queries as `pack` lays them out
    T* parts;   // of cut samples, one `Part` for each cut
    T* sums;    // backward, what each run adds to gradients that are summed over the batch
};

template <class T>
Tap<T> planned(const Distill& call, int64_t g) {
    const Operand& x = call.taps[g];
    Tap<T> tap{};
    tap.batch = x.size[0], tap.tokens = x.size[1], tap.width = x.size[2];
    tap.wide = panels(tap.width) * PANEL;
    const int64_t cuts = most(1, least(divide_up(ITEMS, most(tap.batch, 1)), tap.tokens / TOKENS));
    tap.cut_tokens = round_up(divide_up(tap.tokens, cuts), BLOCK);
    tap.cuts = divide_up(tap.tokens, tap.cut_tokens);
    tap.run = most(1, tap.batch / ITEMS);
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

/// Some tokens of one sample: their places, their rows in memory and the moments of these.
template <class T>
struct Tokens {
    int64_t count = 0;
    int64_t places[BLOCK];
    const T* rows[BLOCK];
    Moments<T> moments[BLOCK];
};

/// What both passes share: the taps, their sizes, and how their tokens are read.
template <class T>
class Pass {
protected:
    const Distill& call;
    const int64_t count, rows, lanes;  // lanes: rows filled up to vectors
    int64_t widest = 0;                // channels of a row
    bool converts = false;             // rows that lie in memory otherwise than in T and dense
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
            converts = converts || !is_dense<T>(of.taps[g].dtype, of.taps[g].stride[2]);
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

    /// Elements that `blocks` wants for rows it has to convert.
    int64_t room() const { return converts ? BLOCK * widest : 0; }

    /// Read a cut's tokens, and call `body(block, ahead)` for each block of them.
    template <class F>
    void blocks(int64_t g, int64_t b, int64_t cut, T* room, const F& body) const {
        const Tap<T>& tap = taps()[g];
        const Operand& x = call.taps[g];
        const int64_t element = size_of(x.dtype), end = least(tap.tokens, (cut + 1) * tap.cut_tokens);
        Tokens<T> block;
        for (int64_t n = cut * tap.cut_tokens; n < end;) {
            for (block.count = 0; n < end && block.count < BLOCK; ++n) {
                if (call.key_mask && !*at(call.key_mask[g], b, n)) continue;
                const int64_t i = block.count++;
                block.places[i] = n;
                block.rows[i] = dense(at(x, b, n), x.dtype, x.stride[2], tap.width, room + i * tap.wide);
                block.moments[i] = moments(block.rows[i], tap.width, call.norm, T(call.eps));
            }
            const int64_t step = x.stride[1] * element;
            if (block.count) body(block, Ahead{at(x, b, n - 1) + step, step, element});
        }
    }

    /// Normalise a block's panels one after the other into `panel`, and call `body(p, channels)` with each.
    template <class F>
    void for_panels(const Tap<T>& tap, const Tokens<T>& block, T* panel, const F& body) const {
        for (int64_t p = 0; p < panels(tap.width); ++p) {
            fill_panel(block.rows, block.moments, block.count, p, tap.width, panel);
            body(p, least(PANEL, tap.width - p * PANEL));
        }
    }

    /// `scores := z right`, (n, width) of a block's normalised rows z, right (wide, width); meanwhile the next block is
    /// fetched.
    void score(const Tap<T>& tap, const Tokens<T>& block, T* panel, const T* right, int64_t width, T* scores,
               const Ahead& ahead) const {
        for_panels(tap, block, panel, [&](int64_t p, int64_t channels) {
            for (int64_t i = 0; i < block.count; i += FETCHED) {
                const int64_t few = least(FETCHED, block.count - i);
                ahead.fetch(i, few, p * PANEL, channels);
                multiply<T, Left::panel>(few, width / LANES<T>, channels, panel + i * PANEL, 0,
                                         right + p * PANEL * width, width, scores + i * width, width, p > 0);
            }
        });
    }

    /// `out (+)= weights^T z` for one panel, (rows, wide), weights (n, step).
    void pool(const Tap<T>& tap, const Tokens<T>& block, int64_t p, int64_t channels, const T* panel, const T* weights,
              int64_t step, T* out, bool add) const {
        multiply<T, Left::columns>(rows, divide_up(channels, LANES<T>), block.count, weights, step, panel, PANEL,
                                   out + p * PANEL, tap.wide, add);
    }
};

/// Whether a call computes in double: if the taps or the queries are float64.
FASTAV_INLINE bool in_double(const Distill& call) {
    return call.taps[0].dtype == Dtype::float64 || call.queries[0].dtype == Dtype::float64;
}

}  // namespace FASTAV_PATH
}  // namespace fastav
