import CTorch

/// A recurrent cell that ``localRecurrence(_:_:inputWeight:hiddenWeight:inputBias:hiddenBias:window:keptBytes:)`` runs.
public enum LocalRecurrentCell: Int32, Sendable, CaseIterable {
    /// r, z, n
    case gru
    /// i, f, g, o
    case lstm
    /// One layer of tanh.
    case plain
}

/// The kernel of the R-Transformer's local RNN: for every token of x `[batch, length, dim]` what a cell holds that starts
/// from zero and reads the last `window` tokens, zero vectors standing before the first.
///
/// The weights are `[gates · dim, dim]` and the biases `[gates · dim]`, gate after gate in the order of the cell's
/// comment. With g gates, time is O(N window g dim²). With gradients, memory is O(N window dim) where that is at most
/// `keptBytes`, and O(N dim) otherwise, where the backward pass takes the steps again. On the CPU only.
public func localRecurrence(
    _ x: Tensor, _ cell: LocalRecurrentCell, inputWeight: Tensor, hiddenWeight: Tensor, inputBias: Tensor,
    hiddenBias: Tensor, window: Int, keptBytes: Int = 1 << 30
) -> Tensor {
    call("local_rnn", [x, inputWeight, hiddenWeight, inputBias, hiddenBias]) { pointers, error in
        ctorch_local_rnn(
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], cell.rawValue, Int64(window),
            Int64(keptBytes), error)
    }
}
