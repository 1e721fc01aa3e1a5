/// Finds the name a person most likely meant: for messages such as "unknown key 'leyers'; did you mean 'layers'?".
public enum NearestName {
    /// The candidate closest to `name`, or `nil` when none is close enough to be worth a suggestion.
    ///
    /// Letter case, `_` and `-` do not count, so `model_dim` finds `modelDim`. A candidate is close when at most one
    /// letter in three differs, or when `name` (three letters or more) is how it begins. Ties go to the first.
    /// Time O(candidates × length²).
    public static func find(for name: String, among candidates: some Sequence<String>) -> String? {
        let wanted = folded(name)
        guard !wanted.isEmpty else { return nil }
        var best: (candidate: String, distance: Int)?
        for candidate in candidates {
            let other = folded(candidate)
            let closeEnough = max(1, (max(wanted.count, other.count) + 1) / 3)
            var distance = editDistance(wanted, other)
            if wanted.count >= 3, other.starts(with: wanted) {
                distance = min(distance, closeEnough)
            }
            if distance <= closeEnough, distance < min(wanted.count, other.count), distance < best?.distance ?? .max {
                best = (candidate, distance)
            }
        }
        return best?.candidate
    }

    /// The end of a message that refuses `name`: the nearest candidate, or all of them when none is near.
    ///
    /// Reads `did you mean 'layers'?` or `expected one of layers, heads` (empty when there are no candidates).
    public static func hint(for name: String, among candidates: some Collection<String>) -> String {
        if let nearest = find(for: name, among: candidates) {
            return "did you mean '\(nearest)'?"
        }
        return candidates.isEmpty ? "" : "expected one of \(candidates.joined(separator: ", "))"
    }

    /// The number of insertions, deletions, replacements and swaps of neighbors that turn `a` into `b`.
    static func editDistance(_ a: [Character], _ b: [Character]) -> Int {
        var beforePrevious: [Int] = []
        var previous = Array(0...b.count)
        for (i, x) in a.enumerated() {
            var current = [i + 1]
            for (j, y) in b.enumerated() {
                var cost = min(previous[j] + (x == y ? 0 : 1), previous[j + 1] + 1, current[j] + 1)
                if i > 0, j > 0, x == b[j - 1], y == a[i - 1] {
                    cost = min(cost, beforePrevious[j - 1] + 1)
                }
                current.append(cost)
            }
            beforePrevious = previous
            previous = current
        }
        return previous[b.count]
    }

    /// Without case and separators, and cut short: a name from outside may be megabytes long.
    private static func folded(_ name: String) -> [Character] {
        Array(name.prefix(64).lowercased().filter { $0 != "_" && $0 != "-" && $0 != " " })
    }
}
