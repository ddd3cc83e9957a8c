// The kernels as dispatcher ops, `torch.ops.fastav_native.*`: what fastav/ops/_native.py calls.
//
// Lists that are not given come empty. Results of one list come as one flat tensor, one entry after the other.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "host.h"

namespace fastav {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Sizes = std::vector<int64_t>;

// ---- which vector path ---------------------------------------------------------------------------------------------

enum class Path { portable, avx2, avx512 };

#if defined(__x86_64__)
bool runs(Path path) {
    switch (path) {
        case Path::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        case Path::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        default: return true;
    }
}
#else
bool runs(Path path) { return path == Path::portable; }
#endif

constexpr const char* NAMES[] = {"portable", "avx2", "avx512"};
constexpr Path PATHS[] = {Path::avx512, Path::avx2, Path::portable};

/// The fastest that this CPU runs, or the one that the environment variable FASTAV_CPU names.
Path chosen() {
    const char* forced = std::getenv("FASTAV_CPU");
    std::string usable;
    for (const Path path : PATHS) {
        if (!runs(path)) continue;
        const char* name = NAMES[static_cast<int>(path)];
        if (forced == nullptr || *forced == '\0' || std::string(forced) == name) return path;
        usable += usable.empty() ? name : std::string(", ") + name;
    }
    STD_TORCH_CHECK(false, "the environment variable FASTAV_CPU is '", forced, "', wanted one of the vector paths that "
                    "this CPU runs: ", usable, "; unset it to take the fastest");
}

std::string path() { return NAMES[static_cast<int>(chosen())]; }

/// Call an op's function on the chosen path.
#if defined(__x86_64__)
#define FASTAV_CALL(function, ...)                           \
    do {                                                     \
        switch (chosen()) {                                  \
            case Path::avx512: avx512::function(__VA_ARGS__); break; \
            case Path::avx2: avx2::function(__VA_ARGS__); break;     \
            default: portable::function(__VA_ARGS__);        \
        }                                                    \
    } while (false)
#else
#define FASTAV_CALL(function, ...) (static_cast<void>(chosen()), portable::function(__VA_ARGS__))
#endif

// ---- tensors as the kernels see them -------------------------------------------------------------------------------

Dtype dtype_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float: return Dtype::float32;
        case ScalarType::Double: return Dtype::float64;
        case ScalarType::BFloat16: return Dtype::bfloat16;
        case ScalarType::Half: return Dtype::float16;
        case ScalarType::Bool: return Dtype::boolean;
        default: STD_TORCH_CHECK(false, "fastav_native: a tensor has a dtype that no kernel reads");
    }
}

Operand operand(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.is_cpu(), "fastav_native: a tensor is not on the CPU");
    Operand found{};
    found.data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
    found.dtype = dtype_of(tensor);
    found.dim = static_cast<int32_t>(tensor.dim());
    STD_TORCH_CHECK(found.dim <= 4, "fastav_native: a tensor has more than four dimensions");
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    for (int32_t i = 0; i < found.dim; ++i) found.size[i] = sizes[i], found.stride[i] = strides[i];
    return found;
}

/// A list of operands that owns their descriptions, not their memory.
class List {
public:
    List() = default;
    explicit List(const Tensors& tensors) {
        items_.reserve(tensors.size());
        for (const Tensor& tensor : tensors) items_.push_back(operand(tensor));
    }

    /// The entries of a flat tensor, of these shapes.
    List(const Tensor& flat, const std::vector<Sizes>& shapes) {
        const Operand whole = operand(flat);
        const int64_t element = static_cast<int64_t>(flat.element_size());
        char* data = whole.data;
        for (const Sizes& shape : shapes) {
            Operand entry = whole;
            entry.data = data;
            entry.dim = static_cast<int32_t>(shape.size());
            int64_t step = 1;
            for (int32_t i = entry.dim - 1; i >= 0; --i) {
                entry.size[i] = shape[i];
                entry.stride[i] = step;
                step *= shape[i];
            }
            data += step * element;
            items_.push_back(entry);
        }
    }

    /// The entries along a tensor's first dimension.
    static List layers(const Tensor& stack) {
        const Operand whole = operand(stack);
        const int64_t element = static_cast<int64_t>(stack.element_size());
        List found;
        for (int64_t i = 0; i < whole.size[0]; ++i) {
            Operand entry = whole;
            entry.data += i * whole.stride[0] * element;
            entry.dim = whole.dim - 1;
            for (int32_t d = 0; d < entry.dim; ++d) {
                entry.size[d] = whole.size[d + 1];
                entry.stride[d] = whole.stride[d + 1];
            }
            found.items_.push_back(entry);
        }
        return found;
    }

    operator Operands() const { return {items_.data(), static_cast<int64_t>(items_.size())}; }

private:
    std::vector<Operand> items_;
};

Sizes shape_of(const Tensor& tensor) {
    const auto sizes = tensor.sizes();
    return Sizes(sizes.begin(), sizes.end());
}

std::vector<Sizes> shapes_of(const Tensors& tensors) {
    std::vector<Sizes> shapes;
    for (const Tensor& tensor : tensors) shapes.push_back(shape_of(tensor));
    return shapes;
}

/// A flat tensor with room for entries of these shapes.
Tensor room_for(const std::vector<Sizes>& shapes, const Tensor& like, ScalarType dtype) {
    int64_t total = 0;
    for (const Sizes& shape : shapes) {
        int64_t product = 1;
        for (const int64_t size : shape) product *= size;
        total += product;
    }
    const Sizes size{total};
    return torch::stable::new_empty(like, size, dtype);
}

Norm norm_of(const std::string& name) {
    return name == "layer" ? Norm::layer : name == "rms" ? Norm::rms : Norm::none;
}

/// Flat gradients of the lists that are wanted, in the order in which `add` asks for them.
class Wanted {
public:
    explicit Wanted(const std::vector<std::string>& names) : names_(names) {}

    List add(const char* name, const Tensors& like) {
        for (size_t i = 0; i < names_.size(); ++i) {
            if (names_[i] != name || like.empty()) continue;
            const auto shapes = shapes_of(like);
            results_.resize(names_.size(), like[0]);
            results_[i] = room_for(shapes, like[0], like[0].scalar_type());
            return List(results_[i], shapes);
        }
        return List();
    }

    Tensors results() const { return results_; }

private:
    std::vector<std::string> names_;
    Tensors results_;
};

// ---- distill -------------------------------------------------------------------------------------------------------

ScalarType wide(const Tensor& a, const Tensor& b) {
    const bool in_double = a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
    return in_double ? ScalarType::Double : ScalarType::Float;
}

/// The lists of a call, kept for as long as it runs.
struct DistillLists {
    List taps, queries, weight, bias, key_mask;

    DistillLists(const Tensors& x, const Tensors& q, const Tensors& w, const Tensors& b, const Tensors& mask)
        : taps(x), queries(q), weight(w), bias(b), key_mask(mask) {}

    Distill call(std::optional<double> scale, const std::string& norm, double eps) const {
        return {taps, queries, weight, bias, key_mask, scale.value_or(std::numeric_limits<double>::quiet_NaN()),
                norm_of(norm), eps};
    }
};

std::tuple<Tensor, Tensor> distill(Tensors taps, Tensors queries, Tensors weight, Tensors bias, Tensors key_mask,
                                   std::optional<double> scale, std::string norm, double eps) {
    const DistillLists lists(taps, queries, weight, bias, key_mask);
    std::vector<Sizes> shapes, sums;
    for (size_t g = 0; g < taps.size(); ++g) {
        const int64_t rows = queries[g].size(queries[g].dim() - 2);
        shapes.push_back({taps[g].size(0), rows, taps[g].size(2)});
        sums.push_back({taps[g].size(0), rows});
    }
    const Tensor outputs = room_for(shapes, queries[0], queries[0].scalar_type());
    const Tensor kept = room_for(sums, queries[0], wide(taps[0], queries[0]));
    FASTAV_CALL(distill_forward, lists.call(scale, norm, eps), List(outputs, shapes), List(kept, sums));
    return {outputs, kept};
}

Tensors distill_backward(Tensors grads, Tensors outputs, Tensors sums, Tensors taps, Tensors queries, Tensors weight,
                         Tensors bias, Tensors key_mask, std::optional<double> scale, std::string norm, double eps,
                         std::vector<std::string> names) {
    const DistillLists lists(taps, queries, weight, bias, key_mask);
    Wanted wanted(names);
    const List d_taps = wanted.add("taps", taps), d_queries = wanted.add("queries", queries);
    const List d_weight = wanted.add("weight", weight), d_bias = wanted.add("bias", bias);
    const DistillGradients gradients{d_taps, d_queries, d_weight, d_bias};
    FASTAV_CALL(distill_backward, lists.call(scale, norm, eps), List(grads), List(outputs), List(sums), gradients);
    return wanted.results();
}

// ---- project -------------------------------------------------------------------------------------------------------

struct ProjectLists {
    List tokens, weights, biases, residuals;

    ProjectLists(const Tensors& t, const Tensors& w, const Tensors& b, const Tensors& r)
        : tokens(t), weights(w), biases(b), residuals(r) {}

    Project call(const std::string& norm, double eps, const std::string& activation) const {
        const Activation kind = activation == "gelu"   ? Activation::gelu
                                : activation == "relu" ? Activation::relu
                                                       : Activation::none;
        return {tokens, weights, biases, residuals, norm_of(norm), eps, kind};
    }
};

/// All outputs, flat; a stack's lie in it as a list's do.
Tensor project(Tensors tokens, Tensors weights, Tensors biases, Tensors residuals, std::string norm, double eps,
               std::string activation) {
    const ProjectLists lists(tokens, weights, biases, residuals);
    std::vector<Sizes> shapes = shapes_of(tokens);
    for (size_t g = 0; g < tokens.size(); ++g) shapes[g].back() = weights[g].size(1);
    const Tensor outputs = room_for(shapes, tokens[0], tokens[0].scalar_type());
    FASTAV_CALL(project_forward, lists.call(norm, eps, activation), List(outputs, shapes));
    return outputs;
}

Tensors project_backward(Tensors grads, Tensors tokens, Tensors weights, Tensors biases, Tensors residuals,
                         std::string norm, double eps, std::string activation, bool stack,
                         std::vector<std::string> names) {
    const ProjectLists lists(tokens, weights, biases, residuals);
    Wanted wanted(names);
    const List d_tokens = wanted.add("tokens", tokens), d_weights = wanted.add("weights", weights);
    const List d_biases = wanted.add("biases", biases), d_residuals = wanted.add("residuals", residuals);
    const ProjectGradients gradients{d_tokens, d_weights, d_biases, d_residuals};
    const List upstream = stack ? List::layers(grads[0]) : List(grads);
    FASTAV_CALL(project_backward, lists.call(norm, eps, activation), upstream, gradients);
    return wanted.results();
}

// ---- fuse ----------------------------------------------------------------------------------------------------------

struct FuseLists {
    List tokens, weights, biases, gate;

    FuseLists(const Tensors& t, const Tensors& w, const Tensors& b, const Tensors& g)
        : tokens(t), weights(w), biases(b), gate(g) {}

    Fuse call(const std::string& norm, double eps, const std::string& kind) const {
        const Gate gate_kind = kind == "layer" ? Gate::layer : kind == "token" ? Gate::token : Gate::none;
        return {tokens, weights, biases, gate, norm_of(norm), eps, gate_kind};
    }
};

/// The output and, for a gate on tokens, the log-sum-exps, else nothing; both flat.
std::tuple<Tensor, Tensor> fuse(Tensors tokens, Tensors weights, Tensors biases, Tensors gate, std::string norm,
                                double eps, std::string gate_kind) {
    const FuseLists lists(tokens, weights, biases, gate);
    const int64_t batch = tokens[0].size(0), rows = tokens[0].size(1);
    const std::vector<Sizes> shapes{{batch, rows, weights[0].size(1)}};
    std::vector<Sizes> sums;
    if (gate_kind == "token") sums.push_back({batch, rows});
    const Tensor output = room_for(shapes, tokens[0], tokens[0].scalar_type());
    const Tensor kept = room_for(sums, tokens[0], wide(tokens[0], weights[0]));
    FASTAV_CALL(fuse_forward, lists.call(norm, eps, gate_kind), List(output, shapes), List(kept, sums));
    return {output, kept};
}

Tensors fuse_backward(Tensors grads, Tensors tokens, Tensors weights, Tensors biases, Tensors gate, std::string norm,
                      double eps, std::string gate_kind, std::vector<std::string> names) {
    const FuseLists lists(tokens, weights, biases, gate);
    Wanted wanted(names);
    const List d_tokens = wanted.add("tokens", tokens), d_weights = wanted.add("weights", weights);
    const List d_biases = wanted.add("biases", biases), d_gate = wanted.add("gate", gate);
    const FuseGradients gradients{d_tokens, d_weights, d_biases, d_gate};
    FASTAV_CALL(fuse_backward, lists.call(norm, eps, gate_kind), List(grads), gradients);
    return wanted.results();
}

// ---- inject --------------------------------------------------------------------------------------------------------

/// The lists of a call, kept for as long as it runs.
struct InjectLists {
    List features, keys, values;

    InjectLists(const Tensors& x, const Tensors& k, const Tensors& v) : features(x), keys(k), values(v) {}

    Inject call(std::optional<double> scale, const std::string& norm, double eps) const {
        return {features, keys, values, scale.value_or(std::numeric_limits<double>::quiet_NaN()), norm_of(norm), eps};
    }
};

Tensor inject(Tensors features, Tensors keys, Tensors values, std::optional<double> scale, std::string norm,
              double eps) {
    const InjectLists lists(features, keys, values);
    const auto shapes = shapes_of(features);
    const Tensor outputs = room_for(shapes, features[0], features[0].scalar_type());
    FASTAV_CALL(inject_forward, lists.call(scale, norm, eps), List(outputs, shapes));
    return outputs;
}

Tensors inject_backward(Tensors grads, Tensors features, Tensors keys, Tensors values, std::optional<double> scale,
                        std::string norm, double eps, std::vector<std::string> names) {
    const InjectLists lists(features, keys, values);
    Wanted wanted(names);
    const List d_features = wanted.add("features", features), d_keys = wanted.add("keys", keys);
    const List d_values = wanted.add("values", values);
    const InjectGradients gradients{d_features, d_keys, d_values};
    FASTAV_CALL(inject_backward, lists.call(scale, norm, eps), List(grads), gradients);
    return wanted.results();
}

// ---- orthogonality -------------------------------------------------------------------------------------------------

Tensor orthogonality(Tensors tokens) {
    const List list(tokens);
    const std::vector<Sizes> shapes{{}};
    const Tensor output = room_for(shapes, tokens[0], wide(tokens[0], tokens[0]));
    FASTAV_CALL(orthogonality_forward, Orthogonality{list}, List(output, shapes));
    return output;
}

Tensors orthogonality_backward(Tensors grads, Tensors tokens, std::vector<std::string> names) {
    const List list(tokens);
    Wanted wanted(names);
    const List d_tokens = wanted.add("tokens", tokens);
    const OrthogonalityGradients gradients{d_tokens};
    FASTAV_CALL(orthogonality_backward, Orthogonality{list}, List(grads), gradients);
    return wanted.results();
}

}  // namespace
}  // namespace fastav

STABLE_TORCH_LIBRARY(fastav_native, m) {
    m.def("path() -> str");
    m.def(
        "distill(Tensor[] taps, Tensor[] queries, Tensor[] weight, Tensor[] bias, Tensor[] key_mask, float? scale, "
        "str norm, float eps) -> (Tensor, Tensor)");
    m.def(
        "distill_backward(Tensor[] grads, Tensor[] outputs, Tensor[] sums, Tensor[] taps, Tensor[] queries, "
        "Tensor[] weight, Tensor[] bias, Tensor[] key_mask, float? scale, str norm, float eps, str[] wanted) "
        "-> Tensor[]");
    m.def(
        "project(Tensor[] tokens, Tensor[] weights, Tensor[] biases, Tensor[] residuals, str norm, float eps, "
        "str activation) -> Tensor");
    m.def(
        "project_backward(Tensor[] grads, Tensor[] tokens, Tensor[] weights, Tensor[] biases, Tensor[] residuals, "
        "str norm, float eps, str activation, bool stack, str[] wanted) -> Tensor[]");
    m.def(
        "fuse(Tensor[] tokens, Tensor[] weights, Tensor[] biases, Tensor[] gate, str norm, float eps, "
        "str gate_kind) -> (Tensor, Tensor)");
    m.def(
        "fuse_backward(Tensor[] grads, Tensor[] tokens, Tensor[] weights, Tensor[] biases, Tensor[] gate, str norm, "
        "float eps, str gate_kind, str[] wanted) -> Tensor[]");
    m.def(
        "inject(Tensor[] features, Tensor[] keys, Tensor[] values, float? scale, str norm, float eps) -> Tensor");
    m.def(
        "inject_backward(Tensor[] grads, Tensor[] features, Tensor[] keys, Tensor[] values, float? scale, str norm, "
        "float eps, str[] wanted) -> Tensor[]");
    m.def("orthogonality(Tensor[] tokens) -> Tensor");
    m.def("orthogonality_backward(Tensor[] grads, Tensor[] tokens, str[] wanted) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastav_native, CompositeExplicitAutograd, m) {
    m.impl("path", TORCH_BOX(&fastav::path));
    m.impl("distill", TORCH_BOX(&fastav::distill));
    m.impl("distill_backward", TORCH_BOX(&fastav::distill_backward));
    m.impl("project", TORCH_BOX(&fastav::project));
    m.impl("project_backward", TORCH_BOX(&fastav::project_backward));
    m.impl("fuse", TORCH_BOX(&fastav::fuse));
    m.impl("fuse_backward", TORCH_BOX(&fastav::fuse_backward));
    m.impl("inject", TORCH_BOX(&fastav::inject));
    m.impl("inject_backward", TORCH_BOX(&fastav::inject_backward));
    m.impl("orthogonality", TORCH_BOX(&fastav::orthogonality));
    m.impl("orthogonality_backward", TORCH_BOX(&fastav::orthogonality_backward));
}
