// The kernels of one vector path without Python and PyTorch, for sanitizers and valgrind.
//
// Calls every op forward and backward on small and awkward shapes. Every tensor, every piece of work memory and every
// thread's workspace is an allocation of its own of exactly the size that was asked for, so that a tool which watches
// allocations sees any step beyond one; with FASTAV_GUARDED, for AddressSanitizer alone, the arrays that are cut from
// work memory are guarded too, see csrc/work.h. Each call is made twice, on one thread and on three, over memory that was filled
// with different bytes before: the same bits must come, or else a result depends on who computed it or on memory that
// nobody wrote.
//
// Compile with FASTAV_PATH set to the path, and link with the kernels of that path. With the argument `bare` memory is left as it
// comes, for tools that know for themselves what was never written.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "host.h"

#if defined(FASTAV_GUARDED)
#include <sanitizer/asan_interface.h>
#endif

namespace fastav {

namespace {

int64_t threads = 1;
int filling = -1;  // the byte that memory is filled with, or none

char* allocate(int64_t bytes, int64_t spare = 0) {
    if (bytes == 0) return nullptr;
    void* found = nullptr;
    if (posix_memalign(&found, 64, size_t(bytes + spare)) != 0) throw std::bad_alloc();
    if (filling >= 0) std::memset(found, filling, size_t(bytes + spare));
    return static_cast<char*>(found);
}

#if defined(FASTAV_GUARDED)
/// Guards take more room than some sizes account for; nobody else may have it.
char* work_memory(int64_t bytes) {
    constexpr int64_t spare = 1024;
    char* const found = allocate(bytes, spare);
    if (found) __asan_poison_memory_region(found + bytes, size_t(spare));
    return found;
}
#else
char* work_memory(int64_t bytes) { return allocate(bytes); }
#endif

}  // namespace

Scratch::Scratch(int64_t bytes) : data_(work_memory(bytes)), owner_(data_) {}
Scratch::Scratch(Scratch&& other) noexcept : data_(other.data_), owner_(other.owner_) { other.owner_ = nullptr; }
Scratch::~Scratch() { std::free(owner_); }

void parallel(int64_t items, int64_t bytes, void (*body)(void*, int64_t, char*), void* context) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        const Scratch workspace(bytes);
        for (int64_t item; (item = next++) < items;) body(context, item, workspace.data());
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
}

namespace {

using Sizes = std::vector<int64_t>;

// ---- tensors -------------------------------------------------------------------------------------------------------

/// How a tensor lies in memory: dense; every second element; the last two dimensions swapped; one item for all along the
/// first dimension.
enum class Layout { dense, strided, swapped, repeated };

constexpr Layout LAYOUTS[] = {Layout::dense, Layout::strided, Layout::swapped, Layout::repeated};
constexpr Dtype DTYPES[] = {Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16};
constexpr Norm NORMS[] = {Norm::layer, Norm::rms, Norm::none};

int64_t size_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64: return 8;
        case Dtype::float32: return 4;
        case Dtype::boolean: return 1;
        default: return 2;
    }
}

/// Random numbers between -2 and 2, none of them smaller than 1/4.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint32_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state_ >> 32);
    }

    void write(char* to, Dtype dtype) {
        const uint32_t drawn = bits();
        const uint32_t sign = drawn >> 31, power = drawn >> 29 & 3, rest = drawn & 0x1fffffff;
        const uint32_t exponent = power == 3 ? 0 : power;  // 2^-2, 2^-1 or 1
        if (dtype == Dtype::float16) return put(to, uint16_t(sign << 15 | (13 + exponent) << 10 | rest >> 19));
        const uint32_t single = sign << 31 | (125 + exponent) << 23 | rest >> 6;
        if (dtype == Dtype::bfloat16) return put(to, uint16_t(single >> 16));
        if (dtype == Dtype::boolean) return put(to, uint8_t(rest % 3 != 0));
        float value;
        std::memcpy(&value, &single, sizeof value);
        if (dtype == Dtype::float64) return put(to, double(value));
        put(to, value);
    }

private:
    template <class T>
    static void put(char* to, T value) {
        std::memcpy(to, &value, sizeof value);
    }

    uint64_t state_;
};

/// A tensor in memory of its own, from its first element to its last and no further.
class Tensor {
public:
    Tensor(const Sizes& size, Dtype dtype, Layout layout = Layout::dense) {
        operand_.dtype = dtype;
        operand_.dim = int32_t(size.size());
        std::vector<int> order;  // dimensions from the innermost on
        for (int i = operand_.dim - 1; i >= 0; --i) order.push_back(i);
        if (layout == Layout::swapped && operand_.dim > 1) std::swap(order[0], order[1]);
        int64_t step = layout == Layout::strided ? 2 : 1, last = 0;
        bool empty = false;
        for (const int i : order) {
            operand_.size[i] = size[size_t(i)];
            operand_.stride[i] = layout == Layout::repeated && i == 0 ? 0 : step;
            if (operand_.stride[i] != 0) step *= size[size_t(i)];
            last += (operand_.size[i] - 1) * operand_.stride[i];
            empty = empty || operand_.size[i] == 0;
        }
        bytes_ = empty ? 0 : (last + 1) * size_of(dtype);
        memory_.reset(allocate(bytes_));
        operand_.data = memory_.get();
    }

    void draw(Random& random) {
        const int64_t element = size_of(operand_.dtype);
        for (int64_t at = 0; at < bytes_; at += element) random.write(operand_.data + at, operand_.dtype);
    }

    const Operand& operand() const { return operand_; }
    std::string bytes() const { return std::string(operand_.data, size_t(bytes_)); }

private:
    Operand operand_{};
    int64_t bytes_ = 0;
    std::unique_ptr<char, decltype(&std::free)> memory_{nullptr, &std::free};
};

/// A list of tensors, as the kernels see it.
class List {
public:
    List() = default;

    /// Tensors of these shapes with random numbers in them.
    List(Random& random, const std::vector<Sizes>& shapes, Dtype dtype, Layout layout = Layout::dense) {
        add(shapes, dtype, layout);
        for (Tensor& tensor : tensors_) tensor.draw(random);
    }

    /// Tensors that are to be written.
    List(const std::vector<Sizes>& shapes, Dtype dtype) { add(shapes, dtype, Layout::dense); }

    /// What gradients of this list are written to, if they are wanted.
    List like(bool wanted) const {
        std::vector<Sizes> shapes;
        for (const Operand& operand : operands_) shapes.emplace_back(operand.size, operand.size + operand.dim);
        return wanted && !shapes.empty() ? List(shapes, operands_[0].dtype) : List();
    }

    operator Operands() const { return {operands_.data(), int64_t(operands_.size())}; }
    Tensor& operator[](size_t i) { return tensors_[i]; }

    std::string bytes() const {
        std::string all;
        for (const Tensor& tensor : tensors_) all += tensor.bytes();
        return all;
    }

private:
    void add(const std::vector<Sizes>& shapes, Dtype dtype, Layout layout) {
        for (const Sizes& shape : shapes) {
            tensors_.emplace_back(shape, dtype, layout);
            operands_.push_back(tensors_.back().operand());
        }
    }

    std::vector<Tensor> tensors_;
    std::vector<Operand> operands_;
};

Dtype wide(Dtype a, Dtype b) {
    return a == Dtype::float64 || b == Dtype::float64 ? Dtype::float64 : Dtype::float32;
}

// ---- one call, twice -----------------------------------------------------------------------------------------------

bool bare = false;
int64_t checked = 0;

/// Make a call on one thread and on three, over different memory; `call` draws its inputs and gives its results' bytes.
void check(const std::string& name, const std::function<std::string(Random&)>& call) {
    std::string first;
    for (int round = 0; round < 2; ++round) {
        threads = round == 0 ? 1 : 3;
        filling = bare ? -1 : round == 0 ? 0xff : 0x2a;  // NaN, and small numbers
        Random random(std::hash<std::string>{}(name));
        const std::string found = call(random);
        if (round == 0) first = found;
        if (found.size() != first.size() || std::memcmp(found.data(), first.data(), found.size()) != 0) {
            std::fprintf(stderr, "%s: other bits on three threads than on one, or from memory that nobody wrote\n",
                         name.c_str());
            std::exit(1);
        }
    }
    ++checked;
}

/// What makes one case unlike another.
struct Variant {
    Dtype first = Dtype::float32, others = Dtype::float32;
    Layout layout = Layout::dense, other_layout = Layout::dense;
    Norm norm = Norm::layer;
    double scale = std::numeric_limits<double>::quiet_NaN();
    bool given = true;   // lists that may be left out
    bool frozen = true;  // the first list, whose gradient is not wanted then
    int kind = 0;        // what the op has besides

    std::string name() const {
        const int64_t all[] = {int64_t(first), int64_t(others), int64_t(layout), int64_t(other_layout), int64_t(norm),
                               scale == scale, given, frozen, kind};
        std::string found;
        for (const int64_t one : all) found += "/" + std::to_string(one);
        return found;
    }
};

std::string name_of(const std::string& op, const Variant& v, const std::vector<Sizes>& shapes) {
    std::string found = op + v.name();
    for (const Sizes& shape : shapes) {
        found += " (";
        for (const int64_t size : shape) found += std::to_string(size) + ",";
        found += ")";
    }
    return found;
}

// ---- the ops -------------------------------------------------------------------------------------------------------

/// Shapes are (B, N, D). Kinds: 1 masks keys, 2 gives each sample its own queries, 3 does both.
void distill(const std::vector<Sizes>& shapes, int64_t rows, const Variant& v) {
    check(name_of("distill", v, shapes), [&](Random& random) {
        std::vector<Sizes> queries_of, widths, places, outputs_of, sums_of;
        for (const Sizes& s : shapes) {
            queries_of.push_back(v.kind & 2 ? Sizes{s[0], rows, s[2]} : Sizes{rows, s[2]});
            widths.push_back({s[2]});
            places.push_back({s[0], s[1]});
            outputs_of.push_back({s[0], rows, s[2]});
            sums_of.push_back({s[0], rows});
        }
        const List taps(random, shapes, v.first, v.layout), queries(random, queries_of, v.others, v.other_layout);
        List weight, bias, mask;
        if (v.given) weight = List(random, widths, v.others, v.layout), bias = List(random, widths, v.first);
        if (v.kind & 1) {
            mask = List(random, places, Dtype::boolean, v.layout);
            const Operand& first = mask[0].operand();  // no keys at all in its first sample
            for (int64_t n = 0; first.size[0] > 0 && n < first.size[1]; ++n) first.data[n * first.stride[1]] = 0;
        }
        const Distill call{taps, queries, weight, bias, mask, v.scale, v.norm, 1e-6};
        const List outputs(outputs_of, v.others), sums(sums_of, wide(v.first, v.others));
        FASTAV_PATH::distill_forward(call, outputs, sums);
        const List grads(random, outputs_of, v.others, v.other_layout);
        const List d_taps = taps.like(!v.frozen), d_queries = queries.like(true);
        const List d_weight = weight.like(v.frozen), d_bias = bias.like(true);
        FASTAV_PATH::distill_backward(call, grads, outputs, sums, {d_taps, d_queries, d_weight, d_bias});
        return outputs.bytes() + sums.bytes() + d_taps.bytes() + d_queries.bytes() + d_weight.bytes() + d_bias.bytes();
    });
}

/// Shapes are (M, D) or (B, M, D). Kinds: the activation.
void project(const std::vector<Sizes>& shapes, const Sizes& outs, const Variant& v) {
    check(name_of("project", v, shapes), [&](Random& random) {
        std::vector<Sizes> weights_of, widths, residuals_of, outputs_of;
        for (size_t i = 0; i < shapes.size(); ++i) {
            Sizes output = shapes[i];
            output.back() = outs[i];
            weights_of.push_back({shapes[i].back(), outs[i]});
            widths.push_back({outs[i]});
            outputs_of.push_back(output);
            // Residuals as wide as the output, alike for all rows, or alike for all channels of a row.
            residuals_of.push_back(i % 3 == 0 ? output : i % 3 == 1 ? Sizes{outs[i]} : Sizes{shapes[i].end()[-2], 1});
        }
        const List tokens(random, shapes, v.first, v.layout), weights(random, weights_of, v.others, v.other_layout);
        List biases, residuals;
        if (v.given)
            biases = List(random, widths, v.others, v.layout), residuals = List(random, residuals_of, v.first, v.layout);
        const Project call{tokens, weights, biases, residuals, v.norm, 1e-6, Activation(v.kind)};
        const List outputs(outputs_of, v.first);
        FASTAV_PATH::project_forward(call, outputs);
        const List grads(random, outputs_of, v.first, v.other_layout);
        const List d_tokens = tokens.like(!v.frozen), d_weights = weights.like(true), d_biases = biases.like(true);
        const List d_residuals = residuals.like(true);
        FASTAV_PATH::project_backward(call, grads, {d_tokens, d_weights, d_biases, d_residuals});
        return outputs.bytes() + d_tokens.bytes() + d_weights.bytes() + d_biases.bytes() + d_residuals.bytes();
    });
}

/// Shapes are (B, K, D). Kinds: the gate.
void fuse(const std::vector<Sizes>& shapes, int64_t width, const Variant& v) {
    check(name_of("fuse", v, shapes), [&](Random& random) {
        std::vector<Sizes> weights_of, widths, sums_of, gate_of;
        for (const Sizes& s : shapes) weights_of.push_back({s[2], width}), widths.push_back({width});
        const Gate kind = Gate(v.kind);
        if (kind == Gate::token) sums_of.push_back({shapes[0][0], shapes[0][1]});
        if (kind != Gate::none) gate_of.push_back({kind == Gate::token ? width : int64_t(shapes.size())});
        const std::vector<Sizes> outputs_of{{shapes[0][0], shapes[0][1], width}};
        const List tokens(random, shapes, v.first, v.layout), weights(random, weights_of, v.others, v.other_layout);
        const List gate(random, gate_of, v.others, v.layout);
        List biases;
        if (v.given) biases = List(random, widths, v.others, v.layout);
        const Fuse call{tokens, weights, biases, gate, v.norm, 1e-6, kind};
        const List outputs(outputs_of, v.first), sums(sums_of, wide(v.first, v.others));
        FASTAV_PATH::fuse_forward(call, outputs, sums);
        const List grads(random, outputs_of, v.first, v.other_layout);
        const List d_tokens = tokens.like(!v.frozen), d_weights = weights.like(true), d_biases = biases.like(true);
        const List d_gate = gate.like(true);
        FASTAV_PATH::fuse_backward(call, grads, {d_tokens, d_weights, d_biases, d_gate});
        return outputs.bytes() + sums.bytes() + d_tokens.bytes() + d_weights.bytes() + d_biases.bytes() + d_gate.bytes();
    });
}

/// Shapes are (B, N, D). Kinds: 1 leaves the keys' gradient out, 2 the values'.
void inject(const std::vector<Sizes>& shapes, int64_t keys_of, const Variant& v) {
    check(name_of("inject", v, shapes) + " " + std::to_string(keys_of), [&](Random& random) {
        std::vector<Sizes> rows;
        for (const Sizes& s : shapes) rows.push_back({s[0], keys_of, s[2]});
        const List features(random, shapes, v.first, v.layout), keys(random, rows, v.others, v.other_layout);
        const List values(random, rows, v.others, v.layout);
        const Inject call{features, keys, values, v.scale, v.norm, 1e-6};
        const List outputs(shapes, v.first);
        FASTAV_PATH::inject_forward(call, outputs);
        const List grads(random, shapes, v.first, v.other_layout);
        const List d_features = features.like(!v.frozen), d_keys = keys.like(v.kind != 1);
        const List d_values = values.like(v.kind != 2);
        FASTAV_PATH::inject_backward(call, grads, {d_features, d_keys, d_values});
        return outputs.bytes() + d_features.bytes() + d_keys.bytes() + d_values.bytes();
    });
}

/// Shapes are (B, K, D).
void orthogonality(const std::vector<Sizes>& shapes, const Variant& v) {
    check(name_of("orthogonality", v, shapes), [&](Random& random) {
        const List tokens(random, shapes, v.first, v.layout);
        const Orthogonality call{tokens};
        const List outputs(std::vector<Sizes>{{}}, wide(v.first, v.first));
        FASTAV_PATH::orthogonality_forward(call, outputs);
        const List grads(random, std::vector<Sizes>{{}}, wide(v.first, v.first)), d_tokens = tokens.like(true);
        FASTAV_PATH::orthogonality_backward(call, grads, {d_tokens});
        return outputs.bytes() + d_tokens.bytes();
    });
}

// ---- all of them ---------------------------------------------------------------------------------------------------

void every_op(const Variant& v) {
    distill({{2, 33, 24}, {3, 17, 10}, {1, 5, 1}}, 3, v);
    if (v.kind < 3) {
        project({{2, 7, 24}, {2, 9, 10}, {2, 3, 65}}, {6, 33, 17}, v);
        fuse({{2, 5, 24}, {2, 5, 10}, {2, 5, 65}}, 33, v);
        inject({{2, 33, 24}, {2, 17, 10}, {2, 1, 65}}, 5, v);
    }
    if (v.kind == 0) orthogonality({{2, 5, 24}, {2, 5, 10}, {2, 5, 1}}, v);
}

void dtypes_and_layouts() {
    int turn = 0;
    Variant v;
    for (const Dtype first : DTYPES) {
        for (const Dtype others : DTYPES) {
            v.first = first, v.others = others;
            for (v.kind = 0; v.kind < 4; ++v.kind, ++turn) {
                v.norm = NORMS[turn % 3], v.given = turn % 2 == 0, v.frozen = turn / 2 % 2 == 0;
                v.layout = LAYOUTS[turn / 3 % 4], v.other_layout = LAYOUTS[turn / 5 % 4];
                every_op(v);
            }
        }
    }
    for (const Layout layout : LAYOUTS) {
        for (const Layout other : LAYOUTS) {
            Variant w;
            w.layout = layout, w.other_layout = other, w.frozen = false;
            every_op(w);
        }
    }
}

/// Sizes beside those of vectors, panels and blocks.
void odd_sizes() {
    const int64_t sizes[] = {1, 3, 16, 63, 65, 96, 130};
    int turn = 0;
    for (const int64_t tokens : sizes) {
        for (const int64_t width : sizes) {
            Variant v;
            const int64_t rows = sizes[++turn % 7];
            v.norm = NORMS[turn % 3], v.kind = turn % 3, v.frozen = turn % 2 == 0, v.scale = 0.3;
            if (turn % 4 == 0) v.first = Dtype::float64;
            if (turn % 4 == 1) v.first = Dtype::bfloat16;
            distill({{2, tokens, width}}, rows, v);
            project({{tokens, width}}, {rows}, v);
            fuse({{2, tokens, width}, {2, tokens, rows}}, rows, v);
            inject({{2, tokens, width}}, rows, v);
            orthogonality({{2, tokens, width}}, v);
        }
    }
    orthogonality({{3, 1, 7}}, {});
}

/// Samples that are cut, and so many that they come in runs.
void long_and_many() {
    for (const Dtype dtype : {Dtype::float32, Dtype::float64, Dtype::float16}) {
        Variant v;
        v.first = dtype;
        for (const bool frozen : {true, false}) {
            v.frozen = frozen;
            for (v.kind = 0; v.kind < 2; ++v.kind) {
                distill({{1, 1301, 7}, {2, 1100, 3}}, 3, v);
                distill({{70, 5, 7}}, 2, v);
                inject({{1, 1301, 7}, {2, 1100, 3}}, 5, v);
                project({{700, 10}, {3, 10}}, {9, 5}, v);
                fuse({{60, 9, 10}, {60, 9, 3}}, 5, v);
            }
        }
        v.kind = 0;
        inject({{1, 1500, 3}}, 600, v);
        inject({{1, 1200, 1536}}, 3, v);
        distill({{1, 1200, 1536}}, 3, v);
        orthogonality({{40, 5, 9}, {40, 5, 3}}, v);
    }
}

void empty_batches() {
    for (int kind = 0; kind < 4; ++kind) {
        Variant v;
        v.kind = kind, v.frozen = kind % 2 == 0;
        distill({{0, 33, 24}, {2, 17, 10}, {0, 5, 3}}, 3, v);
        if (kind == 3) continue;
        project({{0, 7, 24}, {0, 9, 10}}, {6, 33}, v);
        fuse({{0, 5, 24}, {0, 5, 10}}, 33, v);
        inject({{0, 33, 24}, {0, 17, 10}}, 5, v);
    }
}

}  // namespace
}  // namespace fastav

int main(int count, char** words) {
    fastav::bare = count > 1 && std::string(words[1]) == "bare";
    fastav::dtypes_and_layouts();
    fastav::odd_sizes();
    fastav::long_and_many();
    fastav::empty_batches();
    std::printf("%lld calls, the same bits on one thread and on three\n", static_cast<long long>(fastav::checked));
    return 0;
}
