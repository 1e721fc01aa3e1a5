import Torch

/// What reflection finds below a module, every occurrence with its path: a shared parameter appears once for each path.
struct ModuleTree {
    private(set) var modules: [(name: String, module: Module)] = []
    private(set) var parameters: [(name: String, parameter: Parameter)] = []
    private(set) var buffers: [(name: String, buffer: Buffer)] = []

    /// The modules above the one being visited: a reference back to one of them is not followed.
    private var ancestors: Set<ObjectIdentifier> = []

    init(_ root: Module) { visit(root, "") }

    private mutating func visit(_ value: Any, _ path: String) {
        switch value {
        case let parameter as Parameter: parameters.append((path, parameter))
        case let buffer as Buffer: buffers.append((path, buffer))
        case let module as Module: visit(module: module, path)
        case is any TensorScalar, is String, is Tensor: break
        default: visit(parts: Mirror(reflecting: value), path)
        }
    }

    private mutating func visit(module: Module, _ path: String) {
        guard ancestors.insert(ObjectIdentifier(module)).inserted else { return }
        modules.append((path, module))
        var levels: [Mirror] = []
        var level: Mirror? = Mirror(reflecting: module)
        while let mirror = level, mirror.subjectType != Module.self {
            levels.append(mirror)
            level = mirror.superclassMirror
        }
        for mirror in levels.reversed() { visit(properties: mirror, path) }
        ancestors.remove(ObjectIdentifier(module))
    }

    private mutating func visit(parts mirror: Mirror, _ path: String) {
        switch mirror.displayStyle {
        case .optional, .enum: for part in mirror.children { visit(part.value, path) }
        case .struct, .tuple: visit(properties: mirror, path)
        case .collection: visit(elements: mirror, path)
        case .dictionary: visit(entries: mirror, path)
        default: break
        }
    }

    private mutating func visit(properties mirror: Mirror, _ path: String) {
        for (label, value) in mirror.children { visit(value, join(path, propertyName(label ?? ""))) }
    }

    private mutating func visit(elements mirror: Mirror, _ path: String) {
        // A long array of numbers would be a slow way to find nothing.
        if let first = mirror.children.first?.value, first is any TensorScalar { return }
        for (index, element) in mirror.children.enumerated() { visit(element.value, join(path, "\(index)")) }
    }

    /// Dictionaries have no order of their own: theirs is that of the keys' names.
    private mutating func visit(entries mirror: Mirror, _ path: String) {
        let entries = mirror.children.compactMap { entry -> (key: String, value: Any)? in
            let pair = Mirror(reflecting: entry.value).children.map(\.value)
            return pair.count == 2 ? ("\(pair[0])", pair[1]) : nil
        }
        for (key, value) in entries.sorted(by: { $0.key < $1.key }) { visit(value, join(path, key)) }
    }

    private func join(_ path: String, _ name: String) -> String {
        path.isEmpty ? name : name.isEmpty ? path : "\(path).\(name)"
    }

    /// Swift stores `lazy var x` as `$__lazy_storage_$_x` and an element of a tuple as `.0`.
    private func propertyName(_ label: String) -> String {
        let lazyPrefix = "$__lazy_storage_$_"
        if label.hasPrefix(lazyPrefix) { return String(label.dropFirst(lazyPrefix.count)) }
        return label.hasPrefix(".") ? String(label.dropFirst()) : label
    }
}
