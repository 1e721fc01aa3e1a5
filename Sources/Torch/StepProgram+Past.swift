// Operations of step programs that look back at the tokens before, or go on from a state channel by channel.
import CTorch

extension StepProgram {
    // MARK: Attention free

    /// The biases of ``appendAverage(_:_:_:activation:bias:past:sums:to:)``, the oldest token of the window first.
    public enum AverageBias {
        case zero
        /// For each head `[heads, window]`; keys then have a single channel a head.
        case heads(Tensor)
        /// For all channels, the same.
        case window(Vector)
    }

    /// A token of the attention free transformer: y = activation(q) Σ e^(k + w) v / Σ e^(k + w), channel by channel,
    /// over all tokens, with w from `bias` in the window and 0 before it.
    ///
    /// - Parameters:
    ///   - past: of the window's tokens before, keys `[window - 1, k.count]` and values `[window - 1, v.count]`, which it
    ///     takes over; where there is none of them yet, keys of -10³⁰ and values of 0.
    ///   - sums: over the tokens before the window, which it changes: Σ e^k v is numerator · e^exponent, Σ e^k
    ///     denominator · e^exponent.
    public func appendAverage(
        _ q: Vector, _ k: Vector, _ v: Vector, activation: Activation, bias: AverageBias,
        past: (keys: Tensor, values: Tensor), sums: (exponent: Vector, numerator: Vector, denominator: Vector),
        to y: Vector
    ) {
        checkCounts([q, v, y, sums.exponent, sums.numerator, sums.denominator], in: "StepProgram.appendAverage")
        var taps: Tensor?
        var row: Vector?
        switch bias {
        case .zero: break
        case .heads(let weights): taps = weights
        case .window(let vector): row = vector
        }
        let heads = taps?.size(0) ?? 1
        let window = past.values.size(0) + 1
        torchPrecondition(
            k.count == (taps == nil ? v.count : heads) && v.count.isMultiple(of: max(heads, 1))
                && (row?.count ?? window) == window, in: "StepProgram.appendAverage",
            "expected keys and biases for \(v.count) channels and a window of \(window), got \(k.count) keys")
        Torch.run("step average", [past.keys, past.values] + (taps.map { [$0] } ?? [])) { [program] handles, error in
            ctorch_step_average(
                program, Int64(heads), activation.rawValue, handles[0], handles[1],
                handles.count > 2 ? handles[2] : nil,
                row?.place ?? -1, q.place, k.place, v.place, sums.exponent.place, sums.numerator.place,
                sums.denominator.place, y.place, error)
        }
    }

    // MARK: Moving averages

    /// y = activation(Σ_i taps_i x_i) over the last tokens, channel by channel.
    ///
    /// - Parameters:
    ///   - taps: `[count, x.count]`, the oldest token's first.
    ///   - past: the inputs of the tokens before `[count - 1, x.count]`, which it takes over.
    public func appendTaps(_ taps: Tensor, _ x: Vector, past: Tensor, activation: Activation, to y: Vector) {
        checkCounts([x, y], in: "StepProgram.appendTaps")
        torchPrecondition(
            taps.shape == [past.size(0) + 1, x.count] && past.shape == [past.size(0), x.count],
            in: "StepProgram.appendTaps",
            "expected taps and inputs of \(x.count) channels, got \(taps.shape) and \(past.shape)")
        Torch.run("step taps", [taps, past]) { [program] handles, error in
            ctorch_step_taps(program, activation.rawValue, handles[0], handles[1], x.place, y.place, error)
        }
    }

    /// s = input ∘ x + decay ∘ s and y = silu(Σ output ∘ s + ω ∘ x), with some numbers s for each channel.
    ///
    /// - Parameters:
    ///   - coefficients: `[3 · numbers + 1, x.count]`: input, decay and output `[numbers, x.count]`, and ω.
    ///   - state: s `[numbers, x.count]`, which it changes.
    public func appendMovingAverage(_ x: Vector, coefficients: Tensor, state: Vector, to y: Vector) {
        checkCounts([x, y], in: "StepProgram.appendMovingAverage")
        let numbers = state.count / max(x.count, 1)
        torchPrecondition(
            coefficients.shape == [3 * numbers + 1, x.count] && state.count == numbers * x.count,
            in: "StepProgram.appendMovingAverage",
            "expected coefficients [\(3 * numbers + 1), \(x.count)], got \(coefficients.shape)")
        Torch.run("step moving average", [coefficients]) { [program] handles, error in
            ctorch_step_moving_average(program, handles[0], x.place, state.place, y.place, error)
        }
    }

    // MARK: Weighted sums

    /// How ``appendWeighing(_:_:_:by:scale:bias:past:chunk:to:)`` makes weights of scores s: softmax,
    /// ½ (1 + erf((s - μ) / (σ √2))) with μ = √½ and σ = √(1/4π), and relu(s)².
    public enum Weighing: Int32, Sendable, CaseIterable {
        case softmax = 1
        case laplace, relu2
    }

    /// What ``appendWeighing(_:_:_:by:scale:bias:past:chunk:to:)`` adds to scores by distance.
    public enum DistanceBias {
        /// A number for each distance from 0 on.
        case table(Tensor)
        /// Σ_i cosines_i cos(distance · frequencies_i) + sines_i sin(distance · frequencies_i), the frequencies
        /// float64.
        case waves(frequencies: Tensor, cosines: Tensor, sines: Tensor)
    }

    /// A token of attention with one head, over the present chunk: y = Σ_j weight_j v_j, with weights of the scores
    /// scale · q · k_j + b. But for softmax, the scale is divided by the number of keys.
    ///
    /// - Parameters:
    ///   - bias: b; a table has numbers for the whole chunk, or without chunks for as many tokens as there may be.
    ///   - past: the chunk's tokens before, keys `[tokens, k.count]` and values `[tokens, v.count]`, which it takes over.
    ///   - chunk: after how many tokens it begins anew; nil for never, with memory that grows.
    public func appendWeighing(
        _ q: Vector, _ k: Vector, _ v: Vector, by function: Weighing, scale: Double, bias: DistanceBias,
        past: (keys: Tensor, values: Tensor), chunk: Int?, to y: Vector
    ) {
        checkCounts([q, k], in: "StepProgram.appendWeighing")
        checkCounts([v, y], in: "StepProgram.appendWeighing")
        torchPrecondition(
            past.keys.rank == 2 && past.keys.size(1) == k.count && past.values.shape == [past.keys.size(0), v.count]
                && (chunk ?? 1) > 0, in: "StepProgram.appendWeighing",
            "expected keys and values of \(k.count) and \(v.count) channels, got \(past.keys.shape) and "
                + "\(past.values.shape)")
        let biases: [Tensor] =
            switch bias {
            case .table(let table): [table]
            case .waves(let frequencies, let cosines, let sines): [stack([cosines, sines]), frequencies]
            }
        Torch.run("step weighing", [past.keys, past.values] + biases) { [program] handles, error in
            ctorch_step_weigh(
                program, function.rawValue, scale, handles[2], handles.count > 3 ? handles[3] : nil, handles[0],
                handles[1], Int64(chunk ?? 0), q.place, k.place, v.place, y.place, error)
        }
    }

    /// y_t = Σ_{s ≤ t} W_ts v_s + b_t for each head, over all tokens, with memory that grows.
    ///
    /// - Parameters:
    ///   - weights: W `[heads, n, n]`, or with a number for each distance s - t `[heads, 2 n - 1]`.
    ///   - bias: b `[heads, n]`.
    ///   - past: v of the tokens before `[tokens, v.count]`, which it takes over.
    public func appendPositionSum(_ v: Vector, weights: Tensor, bias: Tensor, past: Tensor, to y: Vector) {
        checkCounts([v, y], in: "StepProgram.appendPositionSum")
        torchPrecondition(
            bias.rank == 2 && v.count.isMultiple(of: max(bias.size(0), 1)) && past.rank == 2 && past.size(1) == v.count,
            in: "StepProgram.appendPositionSum",
            "expected \(v.count) channels of some heads, got biases \(bias.shape) and a past \(past.shape)")
        Torch.run("step sum", [weights, bias, past]) { [program] handles, error in
            ctorch_step_position_sum(program, handles[0], handles[1], handles[2], v.place, y.place, error)
        }
    }

    /// y_j = x · row (position + j) of a table `[rows, x.count]`.
    public func appendRowProducts(_ x: Vector, table: Tensor, to y: Vector) {
        torchPrecondition(
            table.rank == 2 && table.size(1) == x.count, in: "StepProgram.appendRowProducts",
            "expected a table [rows, \(x.count)], got \(table.shape)")
        Torch.run("step row products", [table]) { [program] handles, error in
            ctorch_step_row_products(program, Int64(y.count), x.place, handles[0], y.place, error)
        }
    }

    // MARK: Recurrent cells

    /// y_i = W x_i + b for several vectors, one behind the other in x and in y, for W `[rows, columns]`.
    public func appendProducts(_ x: Vector, weight: Tensor, bias: Tensor, to y: Vector) {
        let count = x.count / max(weight.size(1), 1)
        torchPrecondition(
            weight.rank == 2 && x.count == count * weight.size(1) && y.count == count * weight.size(0),
            in: "StepProgram.appendProducts", "a weight \(weight.shape) does not take \(x.count) numbers to \(y.count)")
        Torch.run("step products", [weight, bias]) { [program] handles, error in
            ctorch_step_products(program, Int64(count), x.place, handles[0], handles[1], y.place, error)
        }
    }

    /// A token for recurrent cells that begin from zero at every token and read as many as the window has.
    ///
    /// - Parameters:
    ///   - x: what the gates get from the input, gate after gate as in
    ///     ``localRecurrence(_:_:inputWeight:hiddenWeight:inputBias:hiddenBias:window:keptBytes:)``.
    ///   - products: `[window - 1, x.count]`, what they get from the h of `state`.
    ///   - bias: `[x.count]`, what they get from a zero vector.
    ///   - state: h and, of an LSTM, c after 1, 2, … tokens, `[window - 1, y.count]`, which it changes.
    ///   - y: h of the window that is complete.
    public func appendCells(
        _ cell: LocalRecurrentCell, _ x: Vector, products: Vector, bias: Tensor, window: Int,
        state: (h: Vector, c: Vector?), to y: Vector
    ) {
        let gates = x.count / max(y.count, 1)
        torchPrecondition(
            products.count == (window - 1) * x.count && state.h.count == (window - 1) * y.count
                && (state.c?.count ?? state.h.count) == state.h.count && gates * y.count == x.count
                && (cell == .lstm) == (state.c != nil), in: "StepProgram.appendCells",
            "expected a state of \(window - 1) windows of \(y.count) channels and what its gates get")
        Torch.run("step cells", [bias]) { [program] handles, error in
            ctorch_step_cell(
                program, cell.rawValue, Int64(window), Int64(y.count), handles[0], x.place, products.place,
                state.h.place, state.c?.place ?? -1, y.place, error)
        }
    }
}
