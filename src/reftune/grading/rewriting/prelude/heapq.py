"""Python's `heapq`, with the same order of the list after each call."""


def _less(a, b):
    try:
        return a < b
    except TypeError:  # a class of the program's own
        return _reftune_language.less(a, b)


def _rise(heap, start, place):
    item = heap[place]
    while place > start and _less(item, heap[(place - 1) >> 1]):
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = item


def _sink(heap, place):
    item, start = heap[place], place
    child = 2 * place + 1
    while child < len(heap):
        if child + 1 < len(heap) and not _less(heap[child], heap[child + 1]):
            child += 1
        heap[place] = heap[child]
        place = child
        child = 2 * place + 1
    heap[place] = item
    _rise(heap, start, place)


def heappush(heap, item):
    heap.append(item)
    _rise(heap, 0, len(heap) - 1)


def heappop(heap):
    last = heap.pop()
    return heapreplace(heap, last) if heap else last


def heapreplace(heap, item):
    smallest = heap[0]
    heap[0] = item
    _sink(heap, 0)
    return smallest


def heappushpop(heap, item):
    return heapreplace(heap, item) if heap and _less(heap[0], item) else item


def heapify(heap):
    for place in reversed(range(len(heap) // 2)):
        _sink(heap, place)


def nlargest(n, iterable, key=None):
    return sorted(iterable, key=key, reverse=True)[: max(n, 0)]


def nsmallest(n, iterable, key=None):
    return sorted(iterable, key=key)[: max(n, 0)]


def merge(*iterables, key=None, reverse=False):
    merged = [item for iterable in iterables for item in iterable]
    return iter(sorted(merged, key=key, reverse=reverse))
