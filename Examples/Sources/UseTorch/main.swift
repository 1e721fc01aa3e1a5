// Builds a mixer from the catalogue, runs it on a whole sequence, streams the same sequence, and compares.
import SequenceMixers
import Torch
import TorchNN

let generator = RandomGenerator(seed: 0)
let x = Tensor.randomNormal([1, 100, 64], using: generator)  // [batch, length, modelDim]
let context = try MixerContext(modelDim: 64, heads: 4, isCausal: true, maximumLength: 100, generator: generator)

for name in MixerCatalogue.entries.filter({ $0.causal && $0.streaming != .none }).map(\.name) {
    let mixer = try MixerConfiguration(name).build(context)
    guard let streaming = mixer as? any StreamingMixer, streaming.canStream else {
        print("\(name): does not stream as it is built without options")
        continue
    }
    mixer.evaluate()
    var state = streaming.anyInitialState(batch: 1)
    let difference = withNoGrad {
        let whole = mixer(x)
        // Sixty tokens at once, the rest one by one: the state is all that is carried from each to the next.
        var pieces = [streaming.prefill(x[.all, 0..<60], paddingMask: nil, anyState: &state)]
        for index in 60..<100 {
            pieces.append(streaming.step(x[.all, index], anyState: &state).unsqueezed(1))
        }
        return concatenate(pieces, dim: 1).relativeError(to: whole)
    }
    let kept = state.tensors.values.reduce(0) { $0 + $1.count }
    print("\(name): \(mixer.parameterCount()) weights; after 100 tokens a state of \(kept) numbers")
    precondition(difference < 1e-5, "\(name): streaming is off by \(difference)")
}
print("Streaming agrees with the parallel form.")
