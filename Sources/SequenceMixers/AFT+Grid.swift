// AFT-conv in two dimensions.
//
// What a position sees are the keys in the kernel around it, with their taps, and all others, with the bias 0. The
// others are the rows above the kernel, those below it, and the rows that it touches left and right of it: each a
// prefix or a suffix, so that no sum is the difference of two.
import Torch

extension AFTCore {
    /// The means on the grid that a sequence fills row by row; k has one channel a head.
    func gridMean(_ k: Tensor, _ v: Tensor, _ taps: AFTTapBias) -> Tensor {
        let (length, width) = (k.size(2), taps.gridWidth ?? k.size(2))
        let height = (length + width - 1) / width
        let cells = height * width
        let tokens = ExponentialSums.ofKeys(k, v).padded(2, before: 0, after: cells - length).mapped {
            $0.reshaped($0.size(0), $0.size(1), height, width, $0.size(3))
        }
        let reach = (taps.kernel - 1) / 2

        // Along the rows, up to where the kernel begins, and from where it ends.
        let along = tokens.prefixes()
        let left = along.shifted(3, by: reach + 1)
        let right = flipped(tokens, 3).prefixes().shifted(3, by: reach + 1)
        // Whole rows.
        let rows = along.mapped { $0.selected(3, width - 1) }
        let above = rows.prefixes().shifted(2, by: reach + 1).mapped { $0.unsqueezed(3) }
        let below = flipped(flipped(rows, 2).prefixes().shifted(2, by: reach + 1), 2).mapped { $0.unsqueezed(3) }

        let sides = [left, flipped(right, 3)].map { sums in
            let around = sums.padded(2, before: reach, after: reach)
            return ExponentialWindow(
                exponent: around.exponent, numerator: around.numerator, denominator: around.denominator, bias: nil,
                rows: taps.kernel, columns: 1)
        }
        let around = tokens.padded(2, before: reach, after: reach).padded(3, before: reach, after: reach)
        let kernel = ExponentialWindow(
            exponent: around.exponent, numerator: around.numerator, denominator: nil,
            bias: taps.values.reshaped(1, taps.heads, 1, 1, -1), rows: taps.kernel, columns: taps.kernel)
        let mean = ExponentialSums.mean([above, below], [kernel] + sides)
        return mean.flattened(2, 3).sliced(2, 0..<length)
    }

    private func flipped(_ sums: ExponentialSums, _ dim: Int) -> ExponentialSums { sums.mapped { $0.flipped(dim) } }
}
