// What both passes of distill share: how taps are cut into work, and how their tokens come into tiles.
#pragma once

#include "matrix.h"
#include "work.h"

namespace fastav {
namespace FASTAV_PATH {

/// Items that a tap is cut into at least, as long as each has so many tokens: work for many threads from few samples.
/// Of many samples, items join as many as leave so many items: each adds into memory of its own.
constexpr int64_t ITEMS = 16, TOKENS = 512;

/// Tokens of a block: whole tiles of the matrix product, of one vector and of two. A panel of them, their scores and a
/// panel of queries fit the first-level cache, their rows the second.
constexpr int64_t BLOCK = 48;

/// Rows of one product, between which the next block is fetched: whole register tiles, of scores and of pooled rows.
constexpr int64_t POOLED = 6;
template <class T>
constexpr int64_t scored(int64_t width) {
    return width == LANES<T> ? 16 : 24;
}

constexpr double LOWEST = -__builtin_inf();

/// How one tap is worked on, and where what its items leave for each other lies.
template <class T>
struct Tap {
    int64_t batch, tokens, width, wide;  // wide: the width filled up to panels
    int64_t cuts, cut_tokens;            // of a sample, where samples are few
    int64_t run;                         // samples of a backward item, where they are many
    bool shared;                         // the queries, by all samples
    bool recovers;                       // backward, see there
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

/// Row r of sample b where it lies if it is dense, else converted.
template <class T>
const T* dense_row(const Operand& x, int64_t b, int64_t r, T* room) {
    return dense(x.dim == 2 ? at(x, r) : at(x, b, r), x.dtype, x.stride[x.dim - 1], x.size[x.dim - 1], room);
}

/// `factor w` times the rows of a sample, transposed: channel c of row r at `to[c * step + r]`, zeros beyond the rows.
/// `room` is for a row each lane.
template <class T>
void pack(const Operand& x, int64_t b, int64_t rows, int64_t lanes, T factor, const T* w, T* room, T* to,
          int64_t step) {
    const int64_t width = x.size[x.dim - 1];
    for (int64_t r = 0; r < lanes; r += LANES<T>) {
        const int64_t some = least(LANES<T>, rows - r);
        const T* from[LANES<T>];
        for (int64_t i = 0; i < some; ++i) from[i] = dense_row(x, b, r + i, room + i * width);
        int64_t c = 0;
        for (; c + LANES<T> <= width; c += LANES<T>) {
            const Vector<T> scale = load(w + c) * factor;
            Vector<T> square[LANES<T>] = {};
            for (int64_t i = 0; i < some; ++i) square[i] = load(from[i] + c) * scale;
            turn<T>(square);
            for (int64_t k = 0; k < LANES<T>; ++k) store(to + (c + k) * step + r, square[k]);
        }
        for (; c < width; ++c)
            for (int64_t i = 0; i < LANES<T>; ++i) to[c * step + r + i] = i < some ? factor * w[c] * from[i][c] : T(0);
    }
}

/// The rows in memory behind a block's, which most likely are the next to be read, by this item or the next one. They
/// are asked for a few lines at a time between the products, so that the memory works while the products do: all at
/// once the requests would wait for each other, and the products for them.
class Ahead {
public:
    Ahead(const char* from, int64_t step, int64_t bytes, int64_t rows)
        : from_(uintptr_t(from)), step_(step), bytes_(bytes), rows_(rows) {}

    /// Spread the requests over so many calls of `fetch`.
    FASTAV_MEMBER void spread(int64_t calls) { share_ = divide_up(rows_ * divide_up(bytes_, LINE), calls); }

    /// Ask for the next share; addresses without memory behind them do no harm.
    FASTAV_MEMBER void fetch() {
        for (int64_t i = 0; i < share_ && row_ < rows_; ++i) {
            __builtin_prefetch(reinterpret_cast<const char*>(from_ + uintptr_t(row_ * step_ + byte_)));
            byte_ += LINE;
            if (byte_ >= bytes_) byte_ = 0, ++row_;
        }
    }

private:
    static constexpr int64_t LINE = 64;
    uintptr_t from_;
    int64_t step_, bytes_, rows_, share_ = 0, row_ = 0, byte_ = 0;
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
        for_each(items.total(), (1 + LANES<T>) * widest * int64_t(sizeof(T)), [&](int64_t item, char* memory) {
            const int64_t g = items.find(item).entry;
            const Tap<T>& tap = taps()[g];
            Cutter cutter(memory);
            T *w = cutter.array<T>(tap.wide), *room = cutter.array<T>(LANES<T> * tap.wide);
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
            Ahead ahead(at(x, b, n - 1) + step, step, tap.width * element, block.count);
            if (block.count) body(block, ahead);
        }
    }

    /// Products of n tokens with `width` rows, and `pooled` times the other way: as often is there time to fetch.
    int64_t products(const Tap<T>& tap, int64_t n, int64_t width, int64_t pooled) const {
        return panels(tap.width) * (divide_up(n, scored<T>(width)) + pooled * divide_up(rows, POOLED));
    }

    /// Normalise a block into the tile z, and `scores := z right`, (n, width), right (wide, width).
    void score(const Tap<T>& tap, const Tokens<T>& block, const Tile<T>& z, const T* right, int64_t width, T* scores,
               Ahead& ahead) const {
        for (int64_t p = 0; p < panels(tap.width); ++p) {
            fill_panel(block.rows, block.moments, block.count, p, tap.width, z.panel(p));
            for (int64_t i = 0; i < block.count; i += scored<T>(width)) {
                ahead.fetch();
                multiply<T, Left::panel>(least(scored<T>(width), block.count - i), width / LANES<T>,
                                         least(PANEL, tap.width - p * PANEL), z.row(p, i), 0,
                                         right + p * PANEL * width, width, scores + i * width, width, p > 0);
            }
        }
    }

    /// `out (+)= weights^T z`, (rows, wide), weights (n, step).
    void pool(const Tap<T>& tap, const Tokens<T>& block, const Tile<T>& z, const T* weights, int64_t step, T* out,
              bool add, Ahead& ahead) const {
        for (int64_t p = 0; p < panels(tap.width); ++p) {
            const int64_t vectors = divide_up(least(PANEL, tap.width - p * PANEL), LANES<T>);
            for (int64_t r = 0; r < rows; r += POOLED) {
                ahead.fetch();
                multiply<T, Left::columns>(least(POOLED, rows - r), vectors, block.count, weights + r, step, z.panel(p),
                                           PANEL, out + r * tap.wide + p * PANEL, tap.wide, add);
            }
        }
    }
};

/// Whether a call computes in double: if the taps or the queries are float64.
FASTAV_INLINE bool in_double(const Distill& call) {
    return call.taps[0].dtype == Dtype::float64 || call.queries[0].dtype == Dtype::float64;
}

}  // namespace FASTAV_PATH
}  // namespace fastav
