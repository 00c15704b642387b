-- the 50 images most worth looking at: failed parts, broken order, boxes far from the median box
with relative as (
    select *, (rel_x_min + rel_x_max) / 2 as centre_x, (rel_y_min + rel_y_max) / 2 as centre_y,
        rel_x_max - rel_x_min as box_width, rel_y_max - rel_y_min as box_height
    from parts
), medians as (
    select label_run, dataset, part, median(centre_x) as median_x, median(centre_y) as median_y,
        median(box_width) as median_width, median(box_height) as median_height
    from relative where status = 'ok' group by label_run, dataset, part
), judged as (
    select *, case when status = 'ok' then abs(centre_x - median_x) + abs(centre_y - median_y)
        + abs(box_width - median_width) + abs(box_height - median_height) end as distance
    from relative left join medians using (label_run, dataset, part)
)
select label_run, dataset, path, any_value(image_id) as image_id,
    count(*) filter (status not in ('ok', 'absent')) as failed_parts,
    count(*) filter (status = 'absent') as absent_parts,
    bool_or(list_contains(flags, 'order')) as order_broken,
    round(max(distance), 3) as distance_from_median,
    string_agg(part || ': ' || status, ', ' order by part) filter (status <> 'ok') as what
from judged
where status <> 'unreadable'
group by label_run, dataset, path
order by failed_parts desc, order_broken desc, distance_from_median desc nulls last, path
limit 50
