import Datasets
import Foundation
import SequenceModels
import Torch
import TorchNN

/// How well a model does on a split.
public struct EvaluationResult: Codable, Equatable, Sendable {
    /// Cross entropy in nats, or the squared error, averaged over all counted targets.
    public var loss: Double
    /// The share of counted targets that the model finds likeliest; nil where they are no choices.
    public var accuracy: Double?
    /// The error's magnitude, averaged over all counted targets; nil where they are no numbers.
    public var absoluteError: Double?
    /// Counted targets: bytes, symbols, sequences or numbers.
    public var targets: Int

    /// The loss in bits: for bytes, bits per byte.
    public var bits: Double { loss / log(2) }

    /// Named numbers for a log, the loss in the unit of the task.
    public func metrics(for task: Recipe.Task) -> [String: Double] {
        var metrics = ["loss": loss, "targets": Double(targets)]
        metrics["accuracy"] = accuracy
        metrics["mae"] = absoluteError
        switch task {
        case .languageModel:
            metrics["bits_per_byte"] = bits
            metrics["perplexity"] = exp(loss)
        case .forecasting: metrics["mse"] = loss
        case .classification, .imageClassification, .copy: break
        }
        return metrics
    }

    /// The most telling of them for a person, as in `0.37, accuracy 0.91`.
    func summary(for task: Recipe.Task) -> String {
        let named = [("accuracy", accuracy), ("mae", absoluteError)].compactMap { name, value in
            value.map { "\(name) \(HumanFormat.short($0))" }
        }
        let first =
            switch task {
            case .languageModel: "\(HumanFormat.short(bits)) bits/byte"
            case .forecasting: "mse \(HumanFormat.short(loss))"
            case .classification, .imageClassification, .copy: HumanFormat.short(loss)
            }
        return ([first] + named).joined(separator: ", ")
    }
}

/// Sums of loss, hits and errors over batches.
private struct EvaluationSums {
    var loss = 0.0
    var hits: Double?
    var absoluteError: Double?
    var targets = 0

    mutating func add(_ batch: any TrainingBatch, _ model: TaskModel) {
        targets += batch.countedTargets
        switch batch {
        case let batch as SeriesBatch:
            let error = model(batch.historyTensor) - batch.futureTensor
            loss += error.square().to(.float64).sum().item()
            absoluteError = (absoluteError ?? 0) + error.abs().to(.float64).sum().item()
        case let batch as TokenBatch:
            let logits = model.flatLogits(batch)
            let target = batch.targetTensor
            loss += crossEntropy(logits, target, reduction: .sum, ignored: Int(TokenBatch.ignoredTarget)).item()
            // An ignored target is negative, so that no class is equal to it.
            hits = (hits ?? 0) + (logits.argmax(-1) .== target).to(.float64).sum().item()
        default: preconditionFailure("no model is evaluated on \(type(of: batch))")
        }
    }

    var result: EvaluationResult {
        let count = Double(max(targets, 1))
        return EvaluationResult(
            loss: loss / count, accuracy: hits.map { $0 / count }, absoluteError: absoluteError.map { $0 / count },
            targets: targets)
    }
}

extension TaskModel {
    /// Logits with one row a target: `[batch × length, vocabulary]` or `[batch, classes]`.
    fileprivate func flatLogits(_ batch: TokenBatch) -> Tensor {
        let logits = self(batch.inputTensor, paddingMask: batch.maskTensor)
        return logits.rank == 3 ? logits.flattened(0, 1) : logits
    }

    /// Cross entropy in nats, or for series the squared error, averaged over the counted targets of the batch.
    ///
    /// - Precondition: the batch is of the model's kind of data.
    public func loss(_ batch: any TrainingBatch) -> Tensor {
        switch batch {
        case let batch as SeriesBatch: return (self(batch.historyTensor) - batch.futureTensor).square().mean()
        case let batch as TokenBatch:
            return crossEntropy(flatLogits(batch), batch.targetTensor, ignored: Int(TokenBatch.ignoredTarget))
        default: preconditionFailure("no model is trained on \(type(of: batch))")
        }
    }

    /// Evaluates on a split, without gradients and dropout.
    ///
    /// - Parameters:
    ///   - batchCount: at most so many batches; nil for all.
    ///   - progress: is told of batches done, and of how many there are.
    /// - Throws: `DatasetError` when the split has nothing to count.
    public func evaluate(
        on dataset: some TrainingDataset, split: DatasetSplit, batchSize: Int, batchCount: Int? = nil,
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
