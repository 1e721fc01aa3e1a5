import SequenceMixers
import SequenceModels
import Torch

/// Golden files of whole models, which a mixer's own file cannot build since models stand above mixers.
enum ModelSubjects {
    /// The comparison for a model's file; nil when the file is of something the catalogue's entry builds itself.
    static func evaluation(_ golden: GoldenCase) throws -> GoldenEvaluation? {
        switch (golden.system, golden.variant) {
        case ("transnormer", "transnormer-t1"), ("transnormer", "transnormer-t2"):
            return try TransNormerSubject.evaluation(golden)
        case ("fourier-transformer", let variant) where FourierEncoderSubject.variants.contains(variant):
            return try FourierEncoderSubject.evaluation(golden)
        case ("reformer", "reversible"): return try ReversibleSubject.evaluation(golden)
        case ("samformer", _): return try ForecasterSubject.evaluation(golden)
        default: return nil
        }
    }
}
