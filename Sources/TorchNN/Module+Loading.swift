import Torch

/// Whether the names of loaded tensors must be exactly the module's.
public enum KeyMatching: String, Sendable, Codable {
    case strict
    /// Loads what has a name in common; the report lists the rest.
    case lenient
}

/// What ``Module/load(_:matching:)`` did.
public struct LoadReport: Equatable, Sendable {
    public let loaded: [String]
    /// The module's tensors that were not given, and kept their values.
    public let missing: [String]
    /// Given tensors that the module has no place for.
    public let unexpected: [String]
}

/// Why tensors do not fit a module; its description is one line.
public struct LoadError: Error, Equatable, Sendable, CustomStringConvertible {
    /// A tensor of the right name whose shape or type cannot be loaded.
    public struct Mismatch: Equatable, Sendable, CustomStringConvertible {
        public let name: String
        public let expected: String
        public let found: String

        public var description: String { "'\(name)' expected \(expected), found \(found)" }
    }

    /// The type of the module.
    public let module: String
    public let missing: [String]
    public let unexpected: [String]
    public let mismatches: [Mismatch]
    private let expectedNames: [String]

    init(
        module: String, missing: [String], unexpected: [String], mismatches: [Mismatch], expectedNames: [String]
    ) {
        self.module = module
        self.missing = missing
        self.unexpected = unexpected
        self.mismatches = mismatches
        self.expectedNames = expectedNames
    }

    public var description: String {
        let parts = [
            listed("missing", missing) { quoted($0, nearestIn: unexpected, "given is") },
            listed("unexpected", unexpected) {
                quoted($0, nearestIn: missing.isEmpty ? expectedNames : missing, "nearest")
            },
            listed("do not fit", mismatches, \.description),
        ]
        return "tensors do not fit \(module): " + parts.compactMap { $0 }.joined(separator: "; ")
    }

    private func quoted(_ name: String, nearestIn names: [String], _ introduction: String) -> String {
        guard let nearest = NearestName.find(for: name, among: names) else { return "'\(name)'" }
        return "'\(name)' (\(introduction) '\(nearest)')"
    }

    /// `missing 2: a, b`: at most eight entries, since a line of a thousand names helps nobody.
    private func listed<Entry>(_ title: String, _ entries: [Entry], _ text: (Entry) -> String) -> String? {
        guard !entries.isEmpty else { return nil }
        let limit = 8
        let shown = entries.prefix(limit).map(text).joined(separator: ", ")
        let rest = entries.count > limit ? " and \(entries.count - limit) more" : ""
        return "\(title) \(entries.count): \(shown)\(rest)"
    }
}

extension Module {
    /// Parameters and persistent buffers by name, cut off from the graph.
    ///
    /// The tensors share the module's memory: they show later training. Clone them to keep the present values.
    public final func stateDictionary() -> [String: Tensor] {
        var result: [String: Tensor] = [:]
        for place in places() {
            torchPrecondition(
                result[place.names[0]] == nil, in: "\(type(of: self))", "two tensors are named '\(place.names[0])'")
            result[place.names[0]] = place.tensor.detached()
        }
        return result
    }

    /// Copies tensors into the parameters and persistent buffers of the same names, converted to their type and device.
    ///
    /// A parameter that has several names, because it is shared, is loaded from the first of them that is given.
    ///
    /// - Throws: ``LoadError`` when names are missing or unexpected (only if `matching` is strict), or when a shape differs or
    ///   a type cannot be converted (in any case). Nothing has been changed then.
    @discardableResult
    public final func load(_ tensors: [String: Tensor], matching: KeyMatching = .strict) throws -> LoadReport {
        let places = places()
        let sources = places.map { place in place.names.first { tensors[$0] != nil } }
        let missing = zip(places, sources).filter { $0.1 == nil }.map { $0.0.names[0] }
        let expectedNames = places.flatMap(\.names)
        let unexpected = Set(tensors.keys).subtracting(expectedNames).sorted()
        var pairs: [(target: Tensor, source: Tensor)] = []
        var mismatches: [LoadError.Mismatch] = []
        for (place, name) in zip(places, sources) {
            guard let name, let source = tensors[name] else { continue }
            pairs.append((place.tensor, source))
            if let mismatch = mismatch(name, place.tensor, source) { mismatches.append(mismatch) }
        }
        let namesFit = matching == .lenient || (missing.isEmpty && unexpected.isEmpty)
        guard namesFit && mismatches.isEmpty else {
            throw LoadError(
                module: "\(type(of: self))", missing: matching == .strict ? missing : [],
                unexpected: matching == .strict ? unexpected : [], mismatches: mismatches, expectedNames: expectedNames)
        }
        for (target, source) in pairs { target.copyInPlace(from: source) }
        return LoadReport(loaded: sources.compactMap { $0 }, missing: missing, unexpected: unexpected)
    }

    private func mismatch(_ name: String, _ target: Tensor, _ source: Tensor) -> LoadError.Mismatch? {
        if target.shape != source.shape {
            return LoadError.Mismatch(name: name, expected: "\(target.shape)", found: "\(source.shape)")
        }
        if target.dtype == source.dtype || (target.dtype.isFloatingPoint && source.dtype.isFloatingPoint) { return nil }
        return LoadError.Mismatch(name: name, expected: "\(target.dtype)", found: "\(source.dtype)")
    }

    /// Each tensor that is saved, with all its names.
    private func places() -> [(names: [String], tensor: Tensor)] {
        let tree = ModuleTree(self)
        let parameters = tree.parameters.map { ($0.name, $0.parameter as AnyObject, $0.parameter.value) }
        let buffers = tree.buffers.filter(\.buffer.isPersistent).map {
            ($0.name, $0.buffer as AnyObject, $0.buffer.value)
        }
        var result: [(names: [String], tensor: Tensor)] = []
        var position: [ObjectIdentifier: Int] = [:]
        for (name, object, tensor) in parameters + buffers {
            if let known = position[ObjectIdentifier(object)] {
                result[known].names.append(name)
            } else {
                position[ObjectIdentifier(object)] = result.count
                result.append(([name], tensor))
            }
        }
        return result
    }
}
