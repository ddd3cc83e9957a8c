// What the kernels and the rest of the process know of each other. No torch here, and nothing of the C++ library: the
// kernels are compiled once for each vector path, and code that all copies would share could come from the widest one.
#pragma once

#include <cstdint>

namespace fastav {

enum class Dtype : int32_t { float32, float64, bfloat16, float16, boolean };

enum class Norm : int32_t { none, layer, rms };

/// A tensor of up to four dimensions; strides count elements, of any sign and zero too.
struct Operand {
    char* data;
    Dtype dtype;
    int32_t dim;
    int64_t size[4];
    int64_t stride[4];
};

/// A list of tensors; a list that was not given, or is not wanted, has none.
struct Operands {
    const Operand* items;
    int64_t count;
    explicit operator bool() const { return count > 0; }
    const Operand& operator[](int64_t i) const { return items[i]; }
};

/// Calls `body(context, item, workspace)` for every item, on all threads of torch's pool, each item on any of them.
///
/// Threads take the next item when they are done with one, so what an item computes must not depend on who computes it;
/// long items should come first. `workspace` is the thread's own, of `bytes` bytes, not initialised, aligned to 64.
void parallel(int64_t items, int64_t bytes, void (*body)(void* context, int64_t item, char* workspace), void* context);

/// Memory aligned to 64 bytes, not initialised, for as long as the object lives.
class Scratch {
public:
    explicit Scratch(int64_t bytes);
    ~Scratch();
    Scratch(Scratch&&) noexcept;
    Scratch& operator=(Scratch&&) = delete;
    char* data() const { return data_; }

private:
    char* data_;
    void* owner_;  // what frees it
};

// ---- the five ops' arguments ---------------------------------------------------------------------------------------

/// See fastav/ops/distill.py; `scale` is NaN where the width's square root serves.
struct Distill {
    Operands taps, queries, weight, bias, key_mask;
    double scale;
    Norm norm;
    double eps;
};

/// Gradients that are wanted, the others without tensors.
struct DistillGradients {
    Operands taps, queries, weight, bias;
};

enum class Activation : int32_t { none, gelu, relu };

/// See fastav/ops/project.py; a stack's outputs are entries like others.
struct Project {
    Operands tokens, weights, biases, residuals;
    Norm norm;
    double eps;
    Activation activation;
};

struct ProjectGradients {
    Operands tokens, weights, biases, residuals;
};

enum class Gate : int32_t { none, layer, token };

/// See fastav/ops/fuse.py; the gate and the output are lists of one.
struct Fuse {
    Operands tokens, weights, biases, gate;
    Norm norm;
    double eps;
    Gate kind;
};

struct FuseGradients {
    Operands tokens, weights, biases, gate;
};

/// See fastav/ops/inject.py; `scale` is NaN where the width's square root serves.
struct Inject {
    Operands features, keys, values;
    double scale;
    Norm norm;
    double eps;
};

/// Gradients that are wanted, the others without tensors.
struct InjectGradients {
    Operands features, keys, values;
};

/// See fastav/ops/orthogonality.py.
struct Orthogonality {
    Operands tokens;
};

/// The gradient, without tensors where it is not wanted.
struct OrthogonalityGradients {
    Operands tokens;
};

#define FASTAV_DECLARE_OPS                                                                                            \
    void distill_forward(const Distill&, Operands outputs, Operands sums);                                            \
    void distill_backward(const Distill&, Operands grads, Operands outputs, Operands sums, const DistillGradients&);  \
    void project_forward(const Project&, Operands outputs);                                                           \
    void project_backward(const Project&, Operands grads, const ProjectGradients&);                                   \
    void fuse_forward(const Fuse&, Operands outputs, Operands sums);                                                  \
    void fuse_backward(const Fuse&, Operands grads, const FuseGradients&);                                            \
    void inject_forward(const Inject&, Operands outputs);                                                             \
    void inject_backward(const Inject&, Operands grads, const InjectGradients&);                                      \
    void orthogonality_forward(const Orthogonality&, Operands outputs);                                               \
    void orthogonality_backward(const Orthogonality&, Operands grads, const OrthogonalityGradients&);

namespace portable {
FASTAV_DECLARE_OPS
}
#if defined(__x86_64__)
namespace avx2 {
FASTAV_DECLARE_OPS
}
namespace avx512 {
FASTAV_DECLARE_OPS
}
#endif

}  // namespace fastav
