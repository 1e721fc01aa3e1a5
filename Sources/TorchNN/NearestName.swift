/// The one of `names` that differs least from `name` in letters added, removed and replaced; nil if none is close.
package func nearestName(to name: String, among names: [String]) -> String? {
    let best =
        names
        .map { (name: $0, distance: editDistance(Array(name.utf8), Array($0.utf8))) }
        .min { $0.distance < $1.distance }
    guard let best, 2 * best.distance <= max(name.utf8.count, best.name.utf8.count) else { return nil }
    return best.name
}

/// Levenshtein's distance, one row at a time: O(a b) time, O(b) memory.
private func editDistance(_ a: [UInt8], _ b: [UInt8]) -> Int {
    var row = Array(0...b.count)
    for (i, letter) in a.enumerated() {
        var diagonal = row[0]
        row[0] = i + 1
        for (j, other) in b.enumerated() {
            let replaced = diagonal + (letter == other ? 0 : 1)
            diagonal = row[j + 1]
            row[j + 1] = min(replaced, diagonal + 1, row[j] + 1)
        }
    }
    return row[b.count]
}
