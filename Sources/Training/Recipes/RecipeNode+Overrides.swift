extension RecipeNode {
    /// Applies an override such as `model.layers=2`, `optimizer.betas=[0.9, 0.99]` or `data.path=FILE`.
    ///
    /// The value is a scalar, a list in brackets, a section in braces, or text in quotes. Anything else is taken as it
    /// stands, so that a path with blanks or colons needs no quotes. An empty value takes the key back to its default.
    /// A number in the path counts into a list, from 0. Sections on the way are made where they are missing.
    public mutating func set(_ assignment: String) throws(RecipeError) {
        let place = "--set \(assignment)"
        guard let equals = assignment.firstIndex(of: "=") else {
            throw RecipeError(.override("expected KEY=VALUE, as in model.layers=2"), place: place)
        }
        let keys = assignment[..<equals].split(separator: ".", omittingEmptySubsequences: false).map(String.init)
        guard keys.count <= 20, keys.allSatisfy({ !$0.isEmpty && !$0.contains(where: \.isWhitespace) }) else {
            throw RecipeError(.override("expected KEY=VALUE with a key such as model.layers"), place: place)
        }
        let text = String(assignment[assignment.index(after: equals)...])
        let value: RecipeNode
        if let first = text.first, "[{\"'".contains(first) {
            do {
                value = try RecipeNode(yaml: text, name: place).relocated(to: place)
            } catch {
                // A line number within one argument would only confuse.
                throw RecipeError(error.problem, place: place)
            }
        } else {
            value = RecipeNode(Self.content(ofPlain: text), place: place)
        }
        try set(value, at: keys[...], under: "")
    }

    private mutating func set(_ value: RecipeNode, at keys: ArraySlice<String>, under path: String) throws(RecipeError)
    {
        guard let key = keys.first else {
            self = value
            return
        }
        let inner = path.isEmpty ? key : "\(path).\(key)"
        switch content {
        case .null:
            content = .section([])
            try set(value, at: keys, under: path)
        case .section(var entries):
            let index = entries.firstIndex { $0.key == key } ?? entries.endIndex
            if keys.count == 1, case .null = value.content, index < entries.endIndex {
                entries.remove(at: index)
                content = .section(entries)
                return
            }
            if index == entries.endIndex {
                entries.append(Entry(key: key, value: RecipeNode(.null, place: value.place)))
            }
            entries[index].place = value.place
            try entries[index].value.set(value, at: keys.dropFirst(), under: inner)
            content = .section(entries)
        case .list(var values):
            guard let index = Int(key), values.indices.contains(index) else {
                throw RecipeError(
                    .invalid("expected a position from 0 to \(values.count - 1) in the list '\(path)'"),
                    keyPath: inner, place: value.place)
            }
            try values[index].set(value, at: keys.dropFirst(), under: inner)
            content = .list(values)
        default:
            throw RecipeError(
                .invalid("'\(path)' is \(summary), expected a section of keys"), keyPath: inner, place: value.place)
        }
    }

    private func relocated(to place: String) -> RecipeNode {
        switch content {
        case .list(let values):
            RecipeNode(.list(values.map { $0.relocated(to: place) }), place: place)
        case .section(let entries):
            RecipeNode(
                .section(
                    entries.map { Entry(key: $0.key, place: place, value: $0.value.relocated(to: place)) }),
                place: place)
        default: RecipeNode(content, place: place)
        }
    }
}
