import Foundation
import Testing
import Torch

/// Golden files of the R-Transformer and the Fourier Transformer that say what those are not.
@Suite struct BlockRefusalTests {
    private func expect(
        _ name: String, _ text: String, at location: SourceLocation = #_sourceLocation,
        _ change: (inout Mutation) -> Void
    ) throws {
        var mutation = try Mutation(name)
        change(&mutation)
        let failures = try mutation.failures()
        #expect(failures.contains { $0.contains(text) }, "\(failures)", sourceLocation: location)
    }

    @Test func blocksOfTheRTransformer() throws {
        let block = "r-transformer/block-gru"
        try expect(block, "setting 'blocks' is 2, which no block has") { $0.config["blocks"] = 2 }
        try expect(block, "setting 'rnn' is 'SRU'; known: GRU, LSTM, RNN") { $0.config["rnn"] = "SRU" }
        try expect(block, "expected [8, 8], found [24, 8]") { $0.config["rnn"] = "RNN" }
        try expect(block, "r-transformer: window must be at least 1, not 0") { $0.config["window"] = 0 }
        try expect(block, "out (float64, efficient form): off by") { $0.config["window"] = 5 }
        try expect(block, "out (float64, reference form): off by") { $0.config["layer_norm_eps"] = 0.1 }
        try expect(block, "setting 'causal' is false, but the local RNN reads the past only") {
            $0.config["causal"] = false
        }
        try expect(block, "setting 'head_dim' is 5, but the tensors say 4") { $0.config["head_dim"] = 5 }
        try expect(block, "missing 6: 'blocks.0.localLayers.2.") { $0.config["local_layers"] = 3 }
        try expect("r-transformer/stack-gru", "'blocks.2.") { $0.config["blocks"] = 3 }
        try expect("r-transformer/local-rnn-gru", "unknown setting 'heads'") { $0.config["heads"] = 2 }
        try expect("r-transformer/local-rnn-gru", "unknown variant 'global-rnn' of r-transformer; known: local-rnn, ") {
            $0.metadata["variant"] = "global-rnn"
        }
    }

    @Test func filters() throws {
        let filter = "fourier-transformer/filter_ratio02"
        try expect(filter, "setting 'kept' is 5, but the tensors say 4") { $0.config["kept"] = 5 }
        try expect(filter, "setting 'kept_rule' is 'floor'; known: ceil(length*ratio), fixed length") {
            $0.config["kept_rule"] = "floor"
        }
        try expect(filter, "a fixed length takes no ratio") { $0.config["kept_rule"] = "fixed length" }
        try expect(filter, "fourier-transformer: ratio must be above 0 and at most 1, not 2.0") {
            $0.config["ratio"] = 2
        }
        try expect(filter, "dct (float64, efficient form): off by") { mutation in
            mutation.tensors["dct"] = mutation.tensors["dct"].map { $0 * 1.001 }
        }
    }

    @Test func encodersWithFilters() throws {
        let block = "fourier-transformer/lra_block_cls"
        try expect(block, "setting 'pooling' is 'MEAN'; known: CLS") { $0.config["pooling"] = "MEAN" }
        try expect(block, "shape [2, 26, 8], expected [2, 7, 8]") { $0.config["use_filter"] = false }
        try expect(block, "setting 'norm' is 'post'; known: pre") { $0.config["norm"] = "post" }
        let encoder = "fourier-transformer/bart_encoder_global_residual"
        try expect(encoder, "filter layer 3 is not one of 3 layers, counted from 0") {
            $0.config["filter_layers"] = [3]
        }
        try expect(encoder, "shape [2, 11, 8], expected [2, 21, 8]") { $0.config["global_residual"] = false }
        try expect(encoder, "setting 'norm' is 'sandwich'; known: pre, post") { $0.config["norm"] = "sandwich" }
        for (key, value) in [("norm", "pre"), ("filter_layers", [0, 2]), ("ratio", 0.4)] as [(String, Any)] {
            try expect(encoder, "out (float64, efficient form): off by") { $0.config[key] = value }
        }
    }
}
