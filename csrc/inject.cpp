// Inject: `x + softmax(scale norm(x) keys^T) values` for every stage, see fastav/ops/inject.py.
//
// A work item is one sample of one stage, or a cut of its tokens where samples are few; how a stage is cut depends on
// that stage alone. An item lays its keys out once, a key in each lane, and then goes through its tokens a block at a
// time. A block's rows come from memory once and stay in the second-level cache; what is made of them, normalised rows
// and products with the values, lives a few rows of a panel at a time in the first.
#include "inject.h"

namespace fastav {
namespace FASTAV_PATH {
namespace {

template <class T>
class Forward : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::keys, Base::lanes, Base::stages, Base::widest, Base::widest_room;
    const Operands outputs;

public:
    Forward(const Inject& of, Operands out) : Base(of), outputs(out) {}

    void run() const {
        Cutter sizes;
        cut(sizes);
        this->for_cuts(sizes.used(), [&](int64_t s, int64_t b, int64_t cut_index, char* from) {
            Cutter cutter(from);
            run_item(s, b, cut_index, cut(cutter));
        });
    }

private:
    struct Workspace {
        T *rows, *scores, *keys, *values, *panel, *inverse;
    };

    Workspace cut(Cutter& cutter) const {
        Workspace w;
        w.rows = cutter.array<T>(this->largest_block);
        w.scores = cutter.array<T>(this->score_elements());
        w.keys = cutter.array<T>(widest * lanes);
        w.values = cutter.array<T>(keys * widest_room);
        w.panel = cutter.array<T>(FEW * PANEL);
        w.inverse = cutter.array<T>(this->most_tokens);
        return w;
    }

    void run_item(int64_t s, int64_t b, int64_t cut_index, const Workspace& w) const {
        const Stage<T>& stage = stages()[s];
        const Operand& features = call.features[s];
        const Tile<T> scores{w.scores, stage.block};
        this->turn_rows(call.keys[s], b, stage.scale, w.keys);
        const Block<T> values = take(rows_of_sample(call.values[s], b), 0, keys, 0, stage.width, true, w.values);
        Tokens<T> x;
        this->for_blocks(stage, cut_index, [&](int64_t first, int64_t n) {
            this->read_tokens(stage, features, b, first, n, w.rows, x);
            this->score(stage, x, n, w.keys, scores, Ahead{features, b, first + n}, w.panel);
            for (int64_t t = 0; t < n; ++t) w.inverse[t] = this->powers(scores, t);
            add_values(s, b, first, n, x, values, w);
        });
    }

    /// Write n tokens: their rows as they came, and their shares of the values.
    void add_values(int64_t s, int64_t b, int64_t first, int64_t n, const Tokens<T>& x, const Block<T>& values,
                    const Workspace& w) const {
        const Stage<T>& stage = stages()[s];
        const Operand& y = outputs[s];
        const Tile<T> scores{w.scores, stage.block};
        // Rows in the tensor's own memory have outputs of their kind; others are copies, which become the outputs.
        const bool straight = x.block.data != w.rows;
        T* const to = straight ? reinterpret_cast<T*>(at(y, b, first)) : w.rows;
        const int64_t step = straight ? y.stride[1] : x.block.step;
        const Ahead written{y, b, first};
        for (int64_t p = 0; p < panels(stage.width); ++p) {
            for (int64_t t = 0; t < n; t += FEW) {
                const int64_t few = least(FEW, n - t);
                written.fetch(t, few, p * PANEL, stage.channels(p));
                for (int64_t m = 0; m < keys; m += PANEL)
                    multiply<T, Left::panel>(few, stage.vectors(p), least(PANEL, keys - m), scores.row(m / PANEL, t), 0,
                                             values.data + m * values.step + p * PANEL, values.step, w.panel, PANEL,
                                             m > 0);
                for (int64_t i = 0; i < few; ++i)
                    add(x.rows[t + i] + p * PANEL, w.panel + i * PANEL, w.inverse[t + i], stage.channels(p),
                        to + (t + i) * step + p * PANEL);
            }
        }
        for (int64_t t = 0; !straight && t < n; ++t) write(to + t * step, stage.width, at(y, b, first + t), y.dtype);
    }

    /// `to := a + b factor`.
    static void add(const T* a, const T* b, T factor, int64_t channels, T* to) {
        if (channels == PANEL) {
            for (int64_t c = 0; c < PANEL; c += LANES<T>) store(to + c, load(a + c) + load(b + c) * factor);
            return;
        }
        int64_t c = 0;
        for (; c + LANES<T> <= channels; c += LANES<T>) store(to + c, load(a + c) + load(b + c) * factor);
        for (; c < channels; ++c) to[c] = a[c] + b[c] * factor;
    }
};

}  // namespace

void inject_forward(const Inject& call, Operands outputs) {
    if (in_double(call))
        Forward<double>(call, outputs).run();
    else
        Forward<float>(call, outputs).run();
}

}  // namespace FASTAV_PATH
}  // namespace fastav
