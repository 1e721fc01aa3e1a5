import CTorch

/// A stream of random numbers that can be seeded, saved and continued.
///
/// A generator has identity: whoever holds it draws from the same stream. Not safe to use from two threads at once.
public final class RandomGenerator {
    let pointer: ctorch_generator

    /// Equal seeds give equal numbers, on one version of LibTorch.
    public init(seed: UInt64) {
        var error = ctorch_error()
        guard let pointer = ctorch_generator_create(seed, &error) else {
            fatalError("Torch: \(error.taken(in: "generator", []))")
        }
        self.pointer = pointer
    }

    deinit { ctorch_generator_free(pointer) }

    /// Starts the stream anew.
    public func reseed(_ seed: UInt64) {
        Torch.run("manual_seed", []) { ctorch_generator_seed(pointer, seed, $1) }
    }

    /// Everything needed to continue the stream from here: a `uint8` tensor, ready to be saved.
    public var state: Tensor {
        get { call("get_state") { ctorch_generator_state(pointer, $0) } }
        set { Torch.run("set_state", [newValue]) { ctorch_generator_set_state(pointer, $0[0], $1) } }
    }
}

extension Tensor {
    /// Uniform on [0, 1).
    public static func random(
        _ shape: [Int], using generator: RandomGenerator, dtype: DType = .float32, device: Device = .cpu
    ) -> Tensor {
        call("rand") { error in
            shape.withDims { ctorch_rand($0, $1, options(dtype, device), generator.pointer, error) }
        }
    }

    /// Normal with mean 0 and variance 1.
    public static func randomNormal(
        _ shape: [Int], using generator: RandomGenerator, dtype: DType = .float32, device: Device = .cpu
    ) -> Tensor {
        call("randn") { error in
            shape.withDims { ctorch_randn($0, $1, options(dtype, device), generator.pointer, error) }
        }
    }

    /// Whole numbers of the range, each as likely.
    public static func random(
        in range: Range<Int>, _ shape: [Int], using generator: RandomGenerator, device: Device = .cpu
    ) -> Tensor {
        call("randint") { error in
            shape.withDims {
                ctorch_randint(
                    Int64(range.lowerBound), Int64(range.upperBound), $0, $1, options(.int64, device),
                    generator.pointer, error)
            }
        }
    }

    /// 0 ..< count in random order.
    public static func randomPermutation(_ count: Int, using generator: RandomGenerator) -> Tensor {
        call("randperm") { ctorch_randperm(Int64(count), generator.pointer, $0) }
    }

    /// Like `other`: ones with the given probability, zeros otherwise.
    public static func bernoulli(like other: Tensor, probability: Double, using generator: RandomGenerator) -> Tensor {
        call("bernoulli", other) { ctorch_bernoulli_like($0, probability, generator.pointer, $1) }
    }

    /// Indices drawn with the probabilities in the last dimension. `[…, classes]` → `[…, count]`, int64.
    public static func multinomial(
        _ probabilities: Tensor, count: Int = 1, replacement: Bool = true, using generator: RandomGenerator
    ) -> Tensor {
        call("multinomial", probabilities) { ctorch_multinomial($0, Int64(count), replacement, generator.pointer, $1) }
    }
}
