// The conditions under which sparse Transformers approximate every continuous function of sequences. Yun et al. 2020, arXiv
// 2006.04862, assumption 1, for patterns A^1 … A^p that the layers take in turn:
//
//   1. k ∈ A^l_k for every k and l.
//   2. There is an order γ of the positions with γ(i) ∈ ∪_l A^l_{γ(i+1)} for all i: a path through all of them.
//   3. After some number s of layers everything has reached everything: S^s_k = all positions for every k, where S^1_k = A^1_k
//      and S^t_k = ∪ { S^{t-1}_j : j ∈ A^l_k } with l = ((t - 1) mod p) + 1.
//
// Softmax meets the paper's other condition, on the normalizer. The theorem then holds for depth enough; it promises neither
// speed nor that training finds the weights.
import Torch

/// What came of checking a pattern for one length.
public struct UniversalityReport: Equatable, Sendable, CustomStringConvertible {
    /// What is known of the path through all positions; a search for it may have to give up.
    public enum Path: Equatable, Sendable {
        /// Such an order of the positions, as γ.
        case found([Int])
        case impossible
        case undecided
    }

    public let length: Int
    /// Condition 1.
    public let everyTokenSeesItself: Bool
    /// Condition 2.
    public let path: Path
    /// Condition 3: s, or nil when some positions never reach some others.
    public let layersToReachAll: Int?

    /// Whether all conditions are known to hold.
    public var isSatisfied: Bool {
        if case .found = path { everyTokenSeesItself && layersToReachAll != nil } else { false }
    }

    public var description: String {
        let pathText =
            switch path {
            case .found(let order): order == Array(0..<length) ? "yes, in the order of the positions" : "yes"
            case .impossible: "no"
            case .undecided: "not decided"
            }
        let reach = layersToReachAll.map { "yes, in \($0) layer\($0 == 1 ? "" : "s")" } ?? "no"
        return """
            every token sees itself: \(everyTokenSeesItself ? "yes" : "no")
            a path passes through all \(length) positions: \(pathText)
            everything reaches everything: \(reach)
            """
    }
}

extension SparsePattern {
    /// Whether the paper's conditions are known to hold for one sequence length; ``universality(length:heads:isCausal:)`` says
    /// which do.
    public func satisfiesUniversality(length: Int, heads: Int = 1, isCausal: Bool = false) -> Bool {
        universality(length: length, heads: heads, isCausal: isCausal).isSatisfied
    }

    /// Checks the paper's conditions. The heads of a layer together are one of the paper's patterns.
    ///
    /// Memory O(length²), time O(length³) in matrix products for each layer that is needed. A causal pattern never satisfies
    /// them, since nothing reaches what is before it.
    public func universality(length: Int, heads: Int = 1, isCausal: Bool = false) -> UniversalityReport {
        Self.universality(ofLayers: [self], length: length, heads: heads, isCausal: isCausal)
    }

    /// The same for patterns that the layers take in turn.
    public static func universality(
        ofLayers layers: [SparsePattern], length: Int, heads: Int = 1, isCausal: Bool = false
    ) -> UniversalityReport {
        let masks = layers.map { $0.mask(length: length, heads: heads, isCausal: isCausal).any(0) }
        let union = masks.dropFirst().reduce(masks[0]) { ($0 .|| $1) }
        let sees = masks.allSatisfy { $0.diagonal().all().integerItem() != 0 }
        return UniversalityReport(
            length: length, everyTokenSeesItself: sees, path: PathSearch(union, length).path(),
            layersToReachAll: layersToReachAll(masks))
    }

    private static func layersToReachAll(_ masks: [Tensor]) -> Int? {
        let steps = masks.map { $0.to(.float32) }
        var (reached, sinceChange, layer) = (steps[0], 0, 1)
        while sinceChange < steps.count {
            if reached.all().integerItem() != 0 { return layer }
            let further = (matmul(steps[layer % steps.count], reached) .> 0).to(.float32)
            sinceChange = further.isIdentical(to: reached) ? sinceChange + 1 : 0
            (reached, layer) = (further, layer + 1)
        }
        return reached.all().integerItem() != 0 ? layer : nil
    }
}

/// A path through all positions, each of which the next one sees.
private struct PathSearch {
    /// For each position those that see it: where a path may go on.
    private let successors: [[Int]]
    private let length: Int

    init(_ mask: Tensor, _ length: Int) {
        let seen = mask.scalars(as: Bool.self)
        self.length = length
        successors = (0..<length).map { key in (0..<length).filter { $0 != key && seen[$0 * length + key] } }
    }

    func path() -> UniversalityReport.Path {
        for order in [Array(0..<length), Array((0..<length).reversed())] where isPath(order) { return .found(order) }
        if successors.count(where: \.isEmpty) > 1 || !isConnected { return .impossible }
        return search()
    }

    /// Whether there is one piece only, when it does not matter who of a pair sees the other.
    private var isConnected: Bool {
        var neighbors = successors
        for (key, queries) in successors.enumerated() {
            for query in queries { neighbors[query].append(key) }
        }
        var (found, open) = (Set([0]), [0])
        while let position = open.popLast() {
            for next in neighbors[position] where found.insert(next).inserted { open.append(next) }
        }
        return found.count == length
    }

    private func isPath(_ order: [Int]) -> Bool {
        zip(order, order.dropFirst()).allSatisfy { successors[$0].contains($1) }
    }

    /// Depth first, from every start, towards positions with few ways on first; it gives up after so many steps.
    private func search() -> UniversalityReport.Path {
        var steps = 200 * length + 10_000
        for start in (0..<length).sorted(by: { successors[$0].count < successors[$1].count }) {
            var path = [start]
            var visited = [Bool](repeating: false, count: length)
            visited[start] = true
            var choices = [ranked(start, visited)]
            while let last = path.last {
                if path.count == length { return .found(path) }
                steps -= 1
                if steps < 0 { return .undecided }
                if let next = choices[choices.count - 1].popLast() {
                    path.append(next)
                    visited[next] = true
                    choices.append(ranked(next, visited))
                } else {
                    visited[last] = false
                    path.removeLast()
                    choices.removeLast()
                }
            }
        }
        return .impossible
    }

    /// The best way on comes last.
    private func ranked(_ position: Int, _ visited: [Bool]) -> [Int] {
        let open = successors[position].filter { !visited[$0] }
        let ways = open.map { next in successors[next].count { !visited[$0] } }
        return zip(open, ways).sorted { $0.1 == $1.1 ? $0.0 > $1.0 : $0.1 > $1.1 }.map(\.0)
    }
}
