import Datasets
import Foundation
import SequenceModels
import Torch
import TorchNN

/// How well a model does on a split.
public struct EvaluationResult: Codable, Equatable, Sendable {
    /// Cross entropy in nats, averaged over all counted targets.
    public var loss: Double
    /// The share of counted targets that the model finds likeliest.
    public var accuracy: Double
    /// Counted targets: bytes, symbols or sequences.
    public var targets: Int

    /// The loss in bits: for bytes, bits per byte.
    public var bits: Double { loss / log(2) }

    /// Named numbers for a log, the loss in the unit of the task.
    public func metrics(for task: Recipe.Task) -> [String: Double] {
        var metrics = ["loss": loss, "accuracy": accuracy, "targets": Double(targets)]
        if task == .languageModel {
            metrics["bits_per_byte"] = bits
            metrics["perplexity"] = exp(loss)
        }
        return metrics
    }
}

/// Sums of loss and hits over batches.
private struct EvaluationSums {
    var loss = 0.0
    var hits = 0.0
    var targets = 0

    mutating func add(_ batch: TokenBatch, _ model: TaskModel) {
        let logits = model.flatLogits(batch)
        let targetTensor = batch.targetTensor
        loss += crossEntropy(logits, targetTensor, reduction: .sum, ignored: Int(TokenBatch.ignoredTarget)).item()
        // An ignored target is negative, so that no class is equal to it.
        hits += (logits.argmax(-1) .== targetTensor).to(.float64).sum().item()
        targets += batch.countedTargets
    }

    var result: EvaluationResult {
        let count = Double(max(targets, 1))
        return EvaluationResult(loss: loss / count, accuracy: hits / count, targets: targets)
    }
}

extension TaskModel {
    /// Logits with one row a target: `[batch × length, vocabulary]` or `[batch, classes]`.
    fileprivate func flatLogits(_ batch: TokenBatch) -> Tensor {
        let logits = self(batch.inputTensor, paddingMask: batch.maskTensor)
        return logits.rank == 3 ? logits.flattened(0, 1) : logits
    }

    /// Cross entropy in nats, averaged over the counted targets of the batch.
    public func loss(_ batch: TokenBatch) -> Tensor {
        crossEntropy(flatLogits(batch), batch.targetTensor, ignored: Int(TokenBatch.ignoredTarget))
    }

    /// Evaluates on a split, without gradients and dropout.
    ///
    /// - Parameters:
    ///   - batchCount: at most so many batches; nil for all.
    ///   - progress: is told of batches done, and of how many there are.
    /// - Throws: `DatasetError` when the split has nothing to count.
    public func evaluate(
        on dataset: any TokenDataset, split: DatasetSplit, batchSize: Int, batchCount: Int? = nil,
        progress: (Int, Int) -> Void = { _, _ in }
    ) throws -> EvaluationResult {
        let batches = try dataset.evaluationBatches(of: split, batchSize: batchSize)
        let count = min(batchCount ?? batches.count, batches.count)
        let wasTraining = module.isTraining
        module.evaluate()
        defer { module.train(wasTraining) }
        var sums = EvaluationSums()
        withNoGrad {
            for (index, batch) in batches.prefix(count).enumerated() {
                sums.add(batch, self)
                progress(index + 1, count)
            }
        }
        return sums.result
    }
}
